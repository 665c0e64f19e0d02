"""A study as one file: JSON Lines, gzipped, with a digest in each line and no weights.

The first line says what the file is and how much is in it. Then come the *truths*, what predictions are compared with
(labels and halves of a split), each once however many runs share it, and the runs, one a line in the order of their
ids: the record, what the run predicted, and how its weights are distributed; last what is known of runs that a search
stopped. Arrays are `type:base64`, little-endian.
"""

from __future__ import annotations

import base64
import collections
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.errors import RequestError
from tfmt.files import UnreadableError, parse_json, write_whole
from tfmt.runs.sealed import unseal
from tfmt.spec import digest_json
from tfmt.training.predictions import Predictions, SplitTruth
from tfmt.version import __version__

FORMAT = "tfmt study"
SCHEMA = 1
_TYPES = ("int8", "int16", "int32", "int64", "uint8", "float32")
_REMEDY = "get the file anew, or pack the runs again with tfmt-report --pack"


@dataclass(frozen=True)
class PackedRun:
    """One run of a pack.

    Attributes:
      place: file and line, for messages.
      record: what its record.json holds.
      predictions: what it predicted; None where it kept none.
      distributions: what its distributions.json holds; None where it has none.
    """

    place: str
    record: dict[str, Any]
    predictions: Predictions | None
    distributions: dict[str, Any] | None


def write_pack(
    path: Path, records: Mapping[str, str], predictions: Mapping[str, Predictions], distributions: Mapping[str, str],
    paused: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes a study, whole or not at all; equal runs give equal bytes.

    Args:
      path: the file.
      records: the runs' records as JSON, by run id.
      predictions: what they predicted, by run id.
      distributions: what distributions.json holds, by run id.
      paused: what paused.json holds of runs that a search stopped, by run id.

    Raises:
      UnwritableError: the disk is full, or the file cannot be written.
    """
    truths: dict[str, dict[str, Any]] = {}
    runs = []
    for run_id in sorted(records):
        told: dict[str, Any] = {"record": json.loads(records[run_id]), "predictions": None, "distributions": None}
        if run_id in predictions:
            told["predictions"] = _tell_predictions(predictions[run_id], truths)
        if run_id in distributions:
            told["distributions"] = json.loads(distributions[run_id])
        runs.append(told)
    runs += [{"paused": json.loads(paused[run_id])} for run_id in sorted(paused)]
    head = {"format": FORMAT, "schema": SCHEMA, "tfmt": __version__, "truths": len(truths), "runs": len(records),
            "paused": len(paused)}  # fmt: skip
    content = io.BytesIO()
    # Without the file's name and the time, which gzip would note.
    with gzip.GzipFile(filename="", mode="wb", fileobj=content, compresslevel=9, mtime=0) as file:
        for line in (head, *(truths[digest] for digest in sorted(truths)), *runs):
            sealed = line | {"sha256": digest_json(line)}
            file.write(json.dumps(sealed, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    write_whole(path, content.getvalue())


def _tell_predictions(predictions: Predictions, truths: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Predictions as JSON, whose truths are noted apart."""
    told = {}
    for split, truth in predictions.truth.items():
        content: dict[str, Any] = {"labels": _encode(truth.labels), "halves": _encode(truth.halves)}
        if truth.sentence_lengths is not None:
            content["sentence_lengths"] = _encode(truth.sentence_lengths)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        truths[digest] = {"truth": digest, **content}
        epochs = {str(epoch): _encode(array) for epoch, array in predictions.by_epoch.get(split, {}).items()}
        told[split] = {"truth": digest, "epochs": epochs}
    return told


def _encode(array: np.ndarray) -> str:
    values = array.astype(array.dtype.newbyteorder("<"))
    return f"{array.dtype.name}:{base64.b64encode(values.tobytes()).decode()}"


def _decode(text: Any) -> np.ndarray:
    kind, _, coded = text.partition(":")
    if kind not in _TYPES:
        raise ValueError(f"no array of tfmt's: {kind[:20]!r}")
    little = np.dtype(kind).newbyteorder("<")
    return np.frombuffer(base64.b64decode(coded, validate=True), little).astype(kind)


def read_pack(path: Path) -> Iterator[PackedRun]:
    """The runs of a packed study, line by line.

    What was read before a fault was met is not to be used: whether the file is whole is known at its end.

    Raises:
      RequestError: it is no packed study, of another schema, damaged or cut off; the message names the line.
      UnreadableError: it is there and cannot be read now.
    """
    number = 0
    truths: dict[str, SplitTruth] = {}
    head: dict[str, Any] = {}
    runs, last, paused = 0, "", 0
    try:
        with gzip.open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                content = _read_line(line)
                if number == 1:
                    head = _check_head(content)
                elif "truth" in content:
                    truths[content["truth"]] = _read_truth(content)
                elif "paused" in content:
                    paused += 1
                else:
                    run_id = content["record"]["run_id"]
                    if run_id <= last:
                        raise ValueError(f"{run_id} is out of order, or there twice")
                    runs, last = runs + 1, run_id
                    predictions = _read_predictions(content, truths)
                    yield PackedRun(f"{path}:{number}", content["record"], predictions, content["distributions"])
        if not head:
            raise ValueError("the file is empty")
        if (len(truths), runs, paused) != (head["truths"], head["runs"], head.get("paused", 0)):
            raise ValueError(f"the file ends here, with {runs:,} of {head['runs']:,} runs")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        broken = f"{path}:{number + 1}: " if number else f"{path}: "
        raise RequestError(f"{broken}not a packed study, damaged or cut off ({error}); {_REMEDY}") from None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path}:{max(number, 1)}: {what}; {_REMEDY}") from None


def read_packed_paused(path: Path) -> list[bytes]:
    """What paused.json held of the runs that a search had stopped, of a study that `read_pack` reads to its end."""
    with gzip.open(path, "rb") as file:
        count = _read_line(next(file)).get("paused", 0)
        last = collections.deque(file, maxlen=count)
    return [json.dumps(_read_line(line)["paused"]).encode() for line in last]


def _read_line(line: bytes) -> dict[str, Any]:
    """A line's object, once it is sure to be what was written."""
    try:
        content = parse_json(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict) or "sha256" not in content:
        raise ValueError("no line of a packed study")
    return unseal(content)


def _check_head(content: dict[str, Any]) -> dict[str, Any]:
    if content.get("format") != FORMAT:
        raise ValueError("no packed study")
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r}, this tfmt ({__version__}) reads schema {SCHEMA}")
    return content


def _read_truth(content: dict[str, Any]) -> SplitTruth:
    lengths = _decode(content["sentence_lengths"]) if "sentence_lengths" in content else None
    truth = SplitTruth(_decode(content["labels"]), _decode(content["halves"]), lengths)
    words = len(truth.halves) if lengths is None else int(lengths.sum())
    if len(truth.labels) != words or (lengths is not None and len(lengths) != len(truth.halves)):
        raise ValueError("labels and halves do not fit each other")
    return truth


def _read_predictions(content: dict[str, Any], truths: Mapping[str, SplitTruth]) -> Predictions | None:
    """A run's predictions, which are those that its record tells of."""
    told, record = content["predictions"], content["record"]
    if told is None:
        if record.get("predictions_sha256") is not None:
            raise ValueError("it lacks the predictions that its record tells of")
        return None
    truth = {split: truths[part["truth"]] for split, part in told.items()}
    by_epoch = {
        split: {int(epoch): _decode(array) for epoch, array in part["epochs"].items()} for split, part in told.items()
    }
    predictions = Predictions(record["run_id"], truth, by_epoch)
    if any(len(array) != len(truth[split].labels) for split in told for array in by_epoch[split].values()):
        raise ValueError("predictions and labels do not fit each other")
    if predictions.sha256 != record["predictions_sha256"]:
        raise ValueError("its predictions are not those that its record tells of (sha256)")
    return predictions

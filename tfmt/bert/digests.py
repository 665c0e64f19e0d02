"""Digests of files, and what is remembered so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from tfmt.errors import RunError
from tfmt.files import cache_folder, parse_json, write_whole

# A file that changed this recently may change again without a sign: its times have no finer ticks.
_SETTLED_SECONDS = 2.0


def json_digest(content: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content.

    It is remembered by all that changes with the content: path, device, inode, size, and the times of content and
    inode. The last is the one that no program can set back (`cp -p` and archives set the other).
    """
    stat = path.stat()
    key = json_digest([str(path.resolve()), *_state(stat)])
    known = recall("digests", key)
    if isinstance(known, str) and len(known) == 64:
        return known
    begun = time.time()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settled = begun - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS
    if settled and _state(path.stat()) == _state(stat):
        remember("digests", key, digest)
    return digest


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def recall(kind: str, key: str) -> Any:
    """What `remember` stored under a key; None where there is nothing, or something else than it wrote."""
    try:
        stored = parse_json((cache_folder() / kind / key).read_bytes())
        return stored["content"] if stored["sha256"] == json_digest([key, stored["content"]]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(kind: str, key: str, content: Any) -> None:
    """Stores a JSON value; a cache that cannot be written costs time, not correctness."""
    path = cache_folder() / kind / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"content": content, "sha256": json_digest([key, content])}).encode())
    except (OSError, RunError):
        return

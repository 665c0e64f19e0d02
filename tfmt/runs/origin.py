"""What made a record: versions of the packages and of tfmt's own code."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import tfmt

_PACKAGES = ("tensorflow", "tf_keras", "transformers", "tokenizers", "numpy", "safetensors", "scikit-learn", "scipy")


@functools.cache
def package_versions() -> dict[str, str]:
    """{package: version} of what a result depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state(package: Path = Path(tfmt.__file__).parent) -> tuple[str | None, bool | None]:
    """(commit, whether files differ from it) of tfmt's own checkout; (None, None) when installed otherwise.

    Args:
      package: the folder of the package `tfmt`.
    """
    folder = package.resolve().parent
    if not (folder / ".git").exists():
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def python_version() -> str:
    """The interpreter's version."""
    return platform.python_version()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

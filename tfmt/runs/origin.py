"""What made a record: versions of the packages and of tfmt's own code, and the machine."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import socket
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


# Which of them a processor has decides which kernels compute, and so the last bits.
_INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16")


@functools.cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's name, and which wide instructions it has; None where the system tells neither.

    Args:
      cpuinfo: where Linux tells of it.
    """
    try:
        told = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    lines = (line.partition(":") for line in told.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in reversed(list(lines))}
    name = facts.get("model name") or platform.machine()
    present = (facts.get("flags") or facts.get("Features") or "").split()
    wide = ", ".join(instruction for instruction in _INSTRUCTIONS if instruction in present)
    return f"{name} ({wide})" if wide else name or None


def onednn() -> bool | None:
    """Whether TensorFlow was told to compute with oneDNN; None where nobody told it anything."""
    return {"0": False, "1": True}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""))


def host() -> str:
    """The machine's name."""
    return socket.gethostname()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

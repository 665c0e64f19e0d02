"""Where tfmt keeps files of its own, and writing so that a reader sees all of a file or none of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError, SurroundingsError

# What Linux allows; a system that allows less says so itself.
_LONGEST_PATH, _LONGEST_NAME = 4096, 255


def cache_folder() -> Path:
    """Where tfmt keeps what it can make again: `$TFMT_CACHE`, else `~/.cache/tfmt`."""
    return Path(os.environ.get("TFMT_CACHE") or "~/.cache/tfmt").expanduser()


_places: dict[str, str] = {}  # {what a run's settings name: where this machine keeps it}


@contextmanager
def relocated(places: Mapping[str, str]) -> Iterator[None]:
    """Has this process read files where this machine keeps them that another machine named otherwise.

    Args:
      places: {path as the settings of a run write it: path here}; the empty path stands for what TensorFlow Datasets
        or NLTK keep.
    """
    global _places
    before, _places = _places, dict(places)
    try:
        yield
    finally:
        _places = before


def here(path: str) -> str:
    """Where this machine keeps what a run's settings call so: the path itself, unless it is `relocated`."""
    return _places.get(path, path)


def there(text: str) -> str:
    """A message with paths as a run's settings write them, in place of those of this machine."""
    for named, place in sorted(_places.items(), key=lambda pair: len(pair[1]), reverse=True):
        text = text.replace(place, named) if named else text
    return text


def parse_json(content: bytes) -> Any:
    """The JSON value in a file's content, with or without a byte-order mark.

    Raises:
      ValueError: it is none, not UTF-8, or nested deeper than anything that means well.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class UnreadableError(SurroundingsError):
    """A file is there and could not be read now: nothing is known of its content, so it is not to be replaced."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> UnreadableError:
        """The error for a file, from what the system said."""
        return cls(f"{path}: cannot be read now ({error.strerror or error}); see to it and run the same command again")


class UnwritableError(SurroundingsError):
    """A file could not be written: whatever else wants to write there will fail as well.

    Attributes:
      disk_full: whether that is why.
    """

    disk_full = False

    @classmethod
    def of(cls, path: Path, error: OSError) -> UnwritableError:
        """The error for a file or folder, from what the system said."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (
            "the disk is full; free some space" if full else f"cannot be written ({error.strerror or error}); see to it"
        )
        made = cls(f"{path}: {reason} and run the same command again")
        made.disk_full = full
        return made


# What the system says of a disk also where it names no file; the last of a TMPDIR in which nothing can be written.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOENT)


def disk_error(error: OSError, place: Path) -> UnwritableError | None:
    """What an error that met nobody on its way says of the disk; None where it is about something else, as memory.

    Args:
      error: as the system raised it.
      place: what was worked on, for an error that names no file.
    """
    if isinstance(error.filename, str | bytes | os.PathLike):
        return UnwritableError.of(Path(os.fsdecode(error.filename)), error)
    return UnwritableError.of(place, error) if error.errno in _DISK else None


def exists(path: Path) -> bool:
    """Whether something lies there.

    Raises:
      UnreadableError: that cannot be told now, as in a folder that only its owner may enter.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UnreadableError.of(path, error) from None


def own_suffix() -> str:
    """Ends a temporary name as no one else does, be it on another machine that shares the disk."""
    return f"{os.getpid()}.{secrets.token_hex(4)}"


def _take_usual_mode(probe: Path) -> int:
    """Makes an empty file; the mode that files get there, by the umask and by the folder's own rules."""
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to; the file gets its own name once its content is on the disk.

    Args:
      path: where the file shall lie; what lies there stays until the new content is whole.

    Raises:
      UnwritableError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{own_suffix()}")
    try:
        mode = _take_usual_mode(temporary)
        yield temporary
        temporary.chmod(mode)  # safetensors' writer puts a file of its own there, which only its owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UnwritableError.of(path, error) from None
    finally:
        with suppress(OSError):  # what went wrong with the file itself is what counts
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, where the system can: a crash must not bring an older file back."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def check_path(value: Any, name: str) -> Path:
    """A path that was given by somebody, once it is sure to be one.

    Args:
      value: what was given; an empty path would be the current folder, which nobody means by it.
      name: the flag or argument that gave it.

    Raises:
      RequestError: it is no path, empty, or none that a system can have.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise RequestError(f"{name} must be a path. Received: {name}={value!r}")
    text = os.fspath(value)
    if not text.strip():
        raise RequestError(f"{name} is empty: give a path, `.` for the current folder")
    if fault := find_path_fault(text):
        raise RequestError(f"{name} {fault}. Received: {name}={text!r}")
    return Path(text)


def find_path_fault(text: str) -> str | None:
    """Why no file can have this path, whatever lies on the disk; None where one may."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which no path can"
    if b"\0" in encoded:
        return "holds a NUL character, which no path can"
    if len(encoded) >= _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        return f"is longer than a path ({_LONGEST_PATH - 1:,} bytes) or a name in it ({_LONGEST_NAME}) can be"
    return None


def check_output(path: Path, flag: str = "--output", *, makes_folders: bool = False) -> None:
    """Refuses a place where no file can be written, before the work whose result it shall hold.

    Args:
      path: the file.
      flag: the flag that names it.
      makes_folders: whether missing folders will be made.

    Raises:
      RequestError: it is a folder, its folder is missing, or nothing may be written there.
    """
    if path.is_dir():
        raise RequestError(f"{flag}={path}: this is a folder; give the name of a file")
    folder = path.absolute().parent
    while makes_folders and not folder.exists():
        folder = folder.parent
    if not folder.exists():
        raise RequestError(f"{flag}={path}: there is no folder {path.parent}; make it, or give another")
    if not folder.is_dir():
        raise RequestError(f"{flag}={path}: {folder} is no folder; give another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{flag}={path}: nothing may be written into {folder}; give another folder")


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a damaged file to where nothing reads it, under a name that says so; a person might want it.

    Args:
      path: the file.
      folder: where it goes, on the same disk.

    Returns:
      Its new place, `damaged.<name>`, or with a number where there is one already.

    Raises:
      UnwritableError: it cannot be moved.
    """
    place = folder / f"damaged.{path.name}"
    number = 1
    while place.exists():
        number += 1
        place = folder / f"damaged.{number}.{path.name}"
    try:
        path.rename(place)
    except OSError as error:
        raise UnwritableError.of(path, error) from None
    return place


def make_folder(path: Path) -> None:
    """Makes a folder where there is none.

    Raises:
      UnwritableError: the disk is full, or the folder cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UnwritableError.of(path, error) from None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill; it gets its own name once all of it is on the disk.

    Args:
      path: where the folder shall lie; there may be an empty folder, or nothing.

    Raises:
      RequestError: there is something already.
      UnwritableError: the disk is full, or the folder cannot be written.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise RequestError(f"{path}: not empty; give a new folder")
    elif path.exists():
        raise RequestError(f"{path}: a file lies there; give a new folder")
    temporary = path.absolute().with_name(f".{path.absolute().name}.{own_suffix()}")
    try:
        temporary.mkdir(parents=True)
        probe = temporary / ".mode"
        mode = _take_usual_mode(probe)
        probe.unlink()
        yield temporary
        for inner in temporary.rglob("*"):
            if inner.is_file():
                inner.chmod(mode)
                with inner.open("rb") as file:
                    os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.absolute().parent)
    except OSError as error:
        raise UnwritableError.of(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""What a machine keeps that does not share the sweep's disk: models and data, and the folders of runs.

A shelf is called from the sweep's machine, one call after the other, with plain values. Below its root lie

- `parcels/<address>/`: files that runs read, addressed by their names and digests; they stay for later sweeps;
- `incoming/`: what is not whole yet, and beside it the lock of whoever fills it;
- `runs/<token>/<run_id>/`: the folders of runs, one token a sweep's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tfmt.bert.digests import file_digest, json_digest
from tfmt.errors import SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, cache_folder, sync_folder
from tfmt.runs.folder import CHECKPOINT
from tfmt.runs.lease import is_held
from tfmt.runs.paused import PAUSED_FILE
from tfmt.runs.records import DISTRIBUTIONS_FILE, RECORD_FILE, SPEC_FILE
from tfmt.selection.stored import FISHER_FILE, SELECTION_FILE, TUNED_FILE
from tfmt.training.predictions import PREDICTIONS_FILE

PIECE = 32 << 20  # bytes of a file that travel, or are held in memory, at once
# A file by its path in a folder: how many bytes it has, and their sha256.
Manifest = Mapping[str, tuple[int, str]]

# What a run goes on from, and what it leaves at its end.
_GOES_ON_FROM = (SPEC_FILE, PAUSED_FILE, SELECTION_FILE, FISHER_FILE, f"{CHECKPOINT}/*.safetensors", "damaged.*")
_LEAVES = (RECORD_FILE, PREDICTIONS_FILE, DISTRIBUTIONS_FILE, TUNED_FILE, "events.out.tfevents.*")
_LOOKS = 50  # at a folder that changes while it is looked at
_LOOK_SECONDS = 0.1


def list_run(folder: Path, *, checkpoint: bool = False) -> list[str]:
    """The files of a run's folder that tfmt made, by their path in it; leases and what is half written are none.

    Args:
      folder: the run's; there may be none.
      checkpoint: only those that it goes on from.

    Raises:
      UnreadableError: the folder cannot be read now.
    """
    patterns = _GOES_ON_FROM if checkpoint else (*_GOES_ON_FROM, *_LEAVES)
    names = []
    for inside in ("", f"{CHECKPOINT}/"):
        try:
            names += [inside + name for name in os.listdir(folder / inside) if not name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UnreadableError.of(folder, error) from None
    return sorted(name for name in names if any(_is_like(name, pattern) for pattern in patterns))


def _is_like(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def address_of(manifest: Manifest) -> str:
    """By what a parcel is known: the digest of names, sizes and digests of its files."""
    return json_digest({name: list(told) for name, told in manifest.items()})


def read_piece(path: Path, offset: int) -> bytes:
    """At most `PIECE` bytes of a file.

    Raises:
      UnreadableError: it cannot be read now.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(PIECE)
    except OSError as error:
        raise UnreadableError.of(path, error) from None


@dataclass(frozen=True)
class _Box:
    """A folder that is being filled.

    Attributes:
      manifest: what shall be in it.
      folder: where the files gather.
      target: what the folder will be called once it is whole.
      lock: keeps the machine's other processes from filling it, for as long as it is open.
    """

    manifest: Manifest
    folder: Path
    target: Path
    lock: BinaryIO

    def part(self, name: str) -> Path:
        """Where a file gathers that is not whole."""
        return self.folder / f".{json_digest(name)[:16]}.part"

    def lacks(self) -> dict[str, int]:
        """{file that is not there: how many bytes of it are}."""
        found = {}
        for name, (size, _) in self.manifest.items():
            if _size_of(self.folder / name) != size:
                begun = _size_of(self.part(name)) or 0
                found[name] = begun if begun < size else 0
        return found


class Shelf:
    """The node's side; one object a process, and one call at a time.

    Args:
      root: where all of it lies; None for `$TFMT_NODE_DIR`, else `nodes` in tfmt's cache folder. The variable makes it
        a disk of the node's own: nothing is taken for shared then, be it so or not.

    Raises (each method):
      UnwritableError, UnreadableError: the disk is full, or a file cannot be written or read; the path has the host's
        name before it.
    """

    def __init__(self, root: str | None = None) -> None:
        own = os.environ.get("TFMT_NODE_DIR")
        self._root = Path(root or own or cache_folder() / "nodes").expanduser().absolute()
        self._own = bool(own)
        self._boxes: dict[str, _Box] = {}

    # ---- what is here anyway ---------------------------------------------------------------------------------------

    def sees(self, path: str, content: str) -> bool:
        """Whether a file that the sweep has just written is here with what it wrote, so that the disk is shared."""
        try:
            return not self._own and Path(path).read_text() == content
        except (OSError, ValueError):
            return False

    def has_same(self, path: str, manifest: Manifest) -> bool:
        """Whether a folder of the sweep's machine is here under the same path, with the same files."""
        if self._own:
            return False
        try:
            folder = Path(path)
            return _is_whole(folder, manifest) and _has_digests(folder, manifest)
        except OSError:
            return False

    # ---- taking files ----------------------------------------------------------------------------------------------

    def open_parcel(self, manifest: Manifest) -> tuple[str, dict[str, int]] | None:
        """Begins to take a parcel, or goes on where an earlier shipment broke off.

        Returns:
          Its folder, and {file: from which byte it is still to come}; None while another process takes it. Without a
          file that lacks it is whole, and there is nothing to close.
        """
        address = address_of(manifest)
        target = self._root / "parcels" / address
        with _told(target):
            if _is_whole(target, manifest):
                return str(target), {}
            box = self._open(address, manifest, target)
            if box is None:
                return None
            if _is_whole(target, manifest):  # since the look before
                self._let_go(address)
                return str(target), {}
            lacks = box.lacks()
        return (str(target), lacks) if lacks else (self.close(address), {})

    def open_run(self, token: str, run_id: str, manifest: Manifest) -> str | None:
        """Begins to take a run's folder, which replaces what is here of it once it is whole.

        Returns:
          The key for `put` and `close`; "" where the same files are here already, and None while another process takes
          the folder, or is at the run.
        """
        target, key = self.folder_of(token, run_id), _key_of(token, run_id)
        with _told(target):
            if target.exists() and is_held(target):  # by a worker whose sweep is gone, and which ends soon
                return None
            box = self._open(key, manifest, target)
            if box is None:
                return None
            if _is_run(target, manifest):
                self._let_go(key)
                return ""
            if box.folder.exists():
                shutil.rmtree(box.folder)
        return key

    def _open(self, key: str, manifest: Manifest, target: Path) -> _Box | None:
        """A folder to fill; None while another process fills it."""
        self._let_go(key)  # of a shipment that broke off
        incoming = self._root / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        lock = (incoming / f"{key}.lock").open("ab")  # it stays: who finds it open may lock it just then
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        self._boxes[key] = _Box(manifest, incoming / key, target, lock)
        return self._boxes[key]

    def _let_go(self, key: str) -> None:
        if box := self._boxes.pop(key, None):
            box.lock.close()

    def put(self, key: str, name: str, offset: int, content: bytes) -> bool:
        """Takes a piece of a file.

        Args:
          key: the parcel's address, or what `open_run` gave.
          name: the file.
          offset: where the piece begins: behind what is there, or 0 to begin anew.
          content: at most `PIECE` bytes.

        Returns:
          Whether all is well; False where the file came to its end and is not what it should be, or where pieces are
          missing: it has to be sent anew.
        """
        box = self._boxes[key]
        size, sha256 = box.manifest[name]
        part, path = box.part(name), box.folder / _inside(name)
        with self._taking(key, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if offset != (_size_of(part) or 0) and offset:
                part.unlink(missing_ok=True)
                return False
            with part.open("ab" if offset else "wb", buffering=0) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                if offset + len(content) < size:
                    return True
                os.fsync(file.fileno())
            if offset + len(content) != size or digest_file(part) != sha256:
                part.unlink()
                return False
            part.replace(path)
        return True

    def close(self, key: str) -> str:
        """Ends taking: what is whole gets its own name; else what has come of it waits to be gone on with, or removed.

        Returns:
          The folder; "" where it is not whole.
        """
        box = self._boxes.get(key)
        if box is None or box.lacks():
            self._let_go(key)
            return ""
        try:
            with _told(box.target):
                box.folder.mkdir(exist_ok=True)
                for left in box.folder.glob(".*.part"):
                    left.unlink()
                box.target.parent.mkdir(parents=True, exist_ok=True)
                if box.target.exists():
                    shutil.rmtree(box.target)
                for folder in (*filter(Path.is_dir, box.folder.rglob("*")), box.folder):
                    sync_folder(folder)
                box.folder.replace(box.target)
                sync_folder(box.target.parent)
        finally:
            self._let_go(key)
        return str(box.target)

    @contextlib.contextmanager
    def _taking(self, key: str, path: Path) -> Iterator[None]:
        """Tells of a disk that refuses; all that has come of the folder then makes room."""
        try:
            with _told(path):
                yield
        except UnwritableError:
            shutil.rmtree(self._boxes[key].folder, ignore_errors=True)
            self._let_go(key)
            raise

    # ---- giving runs -----------------------------------------------------------------------------------------------

    def folder_of(self, token: str, run_id: str) -> Path:
        """Where a run's folder lies on this machine."""
        return self._root / "runs" / _inside(token) / _inside(run_id)

    def snapshot(self, token: str, run_id: str, checkpoint: bool) -> dict[str, tuple[int, str]]:
        """Holds fast what is in a run's folder at one moment, also while its process goes on writing there.

        A run writes each file whole and renames it, so that a second name of it keeps what it holds. Files that were
        all there at one moment are what a kill at that moment would have left: one can go on from them.

        Args:
          token: the sweep's.
          run_id: the run.
          checkpoint: only what it goes on from; else all that tfmt made, which is for a run that is not at work.

        Returns:
          The files, for `read`; none where there is no folder.
        """
        folder, held = self.folder_of(token, run_id), self._held(token, run_id)
        with _told(folder):
            for _ in range(_LOOKS):
                shutil.rmtree(held, ignore_errors=True)
                (held / CHECKPOINT).mkdir(parents=True)
                names = list_run(folder, checkpoint=checkpoint)
                with contextlib.suppress(FileNotFoundError):  # the process has removed one meanwhile
                    for name in names:
                        _link(folder / name, held / name)
                    if list_run(folder, checkpoint=checkpoint) == names:
                        return {name: (_size_of(held / name) or 0, digest_file(held / name)) for name in names}
                time.sleep(_LOOK_SECONDS)
        raise SurroundingsError(f"{_at(folder)}: changes faster than it can be read; run the same command again")

    def read(self, token: str, run_id: str, name: str, offset: int) -> bytes:
        """A piece of a file that `snapshot` holds."""
        with _told(path := self._held(token, run_id) / _inside(name)):
            return read_piece(path, offset)

    def release(self, token: str, run_id: str) -> None:
        """Lets go of what `snapshot` holds."""
        shutil.rmtree(self._held(token, run_id), ignore_errors=True)

    def drop_run(self, token: str, run_id: str) -> None:
        """Removes a run's folder, and all that is held of it."""
        folder = self.folder_of(token, run_id)
        for place in (folder, self._held(token, run_id), self._root / "incoming" / _key_of(token, run_id)):
            shutil.rmtree(place, ignore_errors=True)

    def _held(self, token: str, run_id: str) -> Path:
        return self.folder_of(token, run_id).with_name(f".held.{_inside(run_id)}")


def digest_file(path: Path) -> str:
    """sha256 of a file that was only just written, of which nothing is remembered."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(path: Path, target: Path) -> None:
    """A second name of a file, or a copy where the file system has none."""
    try:
        target.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, target)


def _key_of(token: str, run_id: str) -> str:
    return json_digest([token, run_id])


def _inside(name: str) -> str:
    """A name that leads nowhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"{name!r} is no name within a folder")
    return name


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return folder.is_dir() and all(_size_of(folder / name) == size for name, (size, _) in manifest.items())


def _has_digests(folder: Path, manifest: Manifest) -> bool:
    return all(file_digest(folder / name) == sha256 for name, (_, sha256) in manifest.items())


def _is_run(folder: Path, manifest: Manifest) -> bool:
    """Whether a run's folder holds these files and no others."""
    return list_run(folder) == sorted(manifest) and _is_whole(folder, manifest) and _has_digests(folder, manifest)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _at(path: Path) -> Path:
    """A path with the name of this machine, for a message that another one shows."""
    return Path(f"{socket.gethostname()}:{path}")


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Turns what the disk says into an error that names this machine and the file."""
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else place
        raise UnwritableError.of(_at(path), error) from None
    except UnreadableError as error:
        raise UnreadableError(f"{socket.gethostname()}:{error}") from None

"""What a run needs on a machine that does not share the sweep's disk, and what comes back: the sweep's side.

`call(name, *arguments)` calls a method of that machine's `Shelf`. What a run reads travels once a machine, as parcels;
the folder of a run goes there when it is to go on, and comes back at its end and, as far as it goes on from there, in
between. At most a piece of a file is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmt import expressions
from tfmt.bert.checkpoint import list_weights_files
from tfmt.bert.digests import file_digest
from tfmt.bert.tokenizer import list_small_files
from tfmt.data.sources import list_data_files
from tfmt.errors import SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, own_suffix, sync_folder
from tfmt.runs.folder import CHECKPOINT
from tfmt.runs.paused import PAUSED_FILE
from tfmt.runs.records import RECORD_FILE
from tfmt.runs.runner import Sources
from tfmt.selection.stored import FISHER_FILE, SELECTION_FILE, TUNED_FILE
from tfmt.spec import RunSpec
from tfmt.study.shelf import address_of, digest_file, list_run, read_piece

Call = Callable[..., Any]
_POLL_SECONDS = 0.5  # between two looks at a parcel that another process of the machine takes
_STATE = f"{CHECKPOINT}/state."
_LAST = (_STATE, PAUSED_FILE, RECORD_FILE)  # in this order: each says that all before it is there


@dataclass(frozen=True)
class Parcel:
    """Files of this machine that another one shall have.

    Attributes:
      folder: where they lie here.
      manifest: {path in it: (bytes, sha256)}.
      inside: the file of them that is meant, where it is not the folder.
    """

    folder: Path
    manifest: dict[str, tuple[int, str]]
    inside: str = ""


def make_parcel(place: Path, files: Iterable[Path]) -> Parcel:
    """Files as a parcel; each is read once for its digest, which is remembered.

    Args:
      place: a folder that they lie in, or the one file.
      files: the files, in the folder or below it; of links what they lead to.

    Raises:
      UnreadableError: one cannot be read now.
    """
    inside = "" if place.is_dir() else place.name
    folder = (place.parent if inside else place).absolute()
    manifest = {}
    for path in files:
        try:
            told = path.stat().st_size, file_digest(path)
        except OSError as error:
            raise UnreadableError.of(path, error) from None
        manifest[path.absolute().relative_to(folder).as_posix()] = told
    return Parcel(folder, manifest, inside)


# ---- what a run reads ----------------------------------------------------------------------------------------------


def list_reads(spec: RunSpec, sources: Sources) -> dict[str, Parcel]:
    """All that a run reads on this machine, but for the folders of runs below its own `output_dir`.

    Args:
      spec: the run.
      sources: where its model lies.

    Returns:
      {path as the spec has it, or the model's folder: what is read of it}. The empty path is what TensorFlow Datasets
      or NLTK keep.

    Raises:
      RequestError, UnreadableError: something is missing, or cannot be read now.
    """
    model = sources.model.folder
    files = [*list_small_files(model), *(model / name for name in list_weights_files(model))]
    reads = {str(model): make_parcel(model, dict.fromkeys(files))}
    place, files = list_data_files(spec)
    if files:
        reads[spec.data_dir] = make_parcel(place, files)
    for name in spec.fisher_from:
        reads[name] = _parcel_of_run(Path(name), (FISHER_FILE, TUNED_FILE))
    if spec.mode == "custom":
        for node in expressions.walk(expressions.parse(expressions.split_label(spec.select)[1])):
            if isinstance(node, expressions.Call) and node.name != "var":
                path = Path(node.text).expanduser()
                reads[node.text] = (
                    _parcel_of_run(path, (SELECTION_FILE,)) if node.name == "run" else make_parcel(path, [path])
                )
    return reads


def _parcel_of_run(folder: Path, names: Iterable[str]) -> Parcel:
    """The first of these files that a run's folder has."""
    return make_parcel(folder, [path for name in names if (path := folder / name).exists()][:1])


def place_reads(call: Call, reads: Mapping[str, Parcel]) -> dict[str, str]:
    """Sees to it that a machine has all of this, and says where: what `Sources.at` takes.

    What lies there under its own path is taken from there; the rest is shipped.

    Raises:
      As `ship`.
    """
    places = {}
    for name, parcel in reads.items():
        here = str(parcel.folder)
        folder = here if call("has_same", here, parcel.manifest) else ship(call, parcel)
        places[name] = str(Path(folder) / parcel.inside)
    return places


# ---- there ---------------------------------------------------------------------------------------------------------


def ship(call: Call, parcel: Parcel) -> str:
    """Brings to a machine what it lacks of a parcel; waits where another of its processes takes the same one.

    Returns:
      The folder there.

    Raises:
      UnreadableError: a file cannot be read here.
      UnwritableError: one cannot be written there.
      SurroundingsError: one changes meanwhile, or does not come through undamaged.
    """
    while (opened := call("open_parcel", parcel.manifest)) is None:
        time.sleep(_POLL_SECONDS)
    folder, lacks = opened
    if lacks:
        _fill(call, address_of(parcel.manifest), parcel.folder, parcel.manifest, lacks)
    return str(folder)


def send_run(call: Call, token: str, folder: Path) -> None:
    """Brings a run's folder to a machine, in place of what that has of it, so that the run goes on from there.

    So does one that has ended, and that other runs compare with; where the same files are there nothing travels.

    Args:
      call: calls the machine's shelf.
      token: of the sweep's folder.
      folder: the run's; its lease is this process's. There may be none.

    Raises:
      As `ship`.
    """
    manifest = {}
    for name in list_run(folder):
        try:
            manifest[name] = (folder / name).stat().st_size, file_digest(folder / name)
        except OSError as error:
            raise UnreadableError.of(folder / name, error) from None
    while (key := call("open_run", token, folder.name, manifest)) is None:
        time.sleep(_POLL_SECONDS)
    if key:
        _fill(call, key, folder, manifest, dict.fromkeys(manifest, 0))


def _fill(
    call: Call, key: str, folder: Path, manifest: Mapping[str, tuple[int, str]], lacks: Mapping[str, int]
) -> None:
    """Sends files, each from the byte from which it lacks."""
    try:
        for name, begun in lacks.items():
            if not any(_send(call, key, folder / name, name, manifest[name][0], offset) for offset in (begun, 0)):
                raise SurroundingsError(
                    f"{folder / name}: changed while it was sent to another machine, or did not get there undamaged; "
                    "leave it as it is and run the same command again"
                )
    except BaseException:
        with contextlib.suppress(Exception):  # the machine may be gone
            call("close", key)
        raise
    if not call("close", key):
        raise SurroundingsError(f"{folder}: went from the machine to which it was sent; run the same command again")


def _send(call: Call, key: str, path: Path, name: str, size: int, offset: int) -> bool:
    """Sends a file from a byte on; whether all of it is there now."""
    while True:
        content = read_piece(path, offset)
        if not call("put", key, name, offset, content):
            return False
        offset += len(content)
        if offset >= size or not content:
            return offset == size


# ---- back ----------------------------------------------------------------------------------------------------------


def fetch_run(
    call: Call, token: str, run_id: str, folder: Path, *, checkpoint: bool, check: Callable[[], None]
) -> None:  # fmt: skip
    """Brings a run's folder back from a machine, every file checked before any gets its name here.

    Files take their places in an order in which a kill in between leaves a folder that a run goes on from: a state
    behind the weights that it names, the record behind all that it tells of. What the run's own process would have
    removed goes last.

    Args:
      call: calls the machine's shelf.
      token: of the sweep's folder.
      run_id: the run.
      folder: its folder here, made where there is none and something to bring.
      checkpoint: only what it goes on from, as its process may still be at work.
      check: called before each write; raises where the folder is no longer this process's.

    Raises:
      UnwritableError, UnreadableError: a file cannot be written here, or read there.
      SurroundingsError: one does not come through undamaged.
    """
    fetched: dict[str, Path] = {}
    try:
        there: dict[str, tuple[int, str]] = call("snapshot", token, run_id, checkpoint)
        if there:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        for name, told in there.items():
            if not _is_same(folder / name, *told):
                fetched[name] = folder / f".tmp.{own_suffix()}"  # who holds the folder next removes what is left
                check()
                if not any(_receive(call, token, run_id, name, fetched[name], told, check) for _ in "12"):
                    raise SurroundingsError(
                        f"{folder / name}: did not come undamaged from the machine that made it; run the same command "
                        "again"
                    )
        _put_in_place(folder, fetched, there, checkpoint, check)
    finally:
        for path in fetched.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        with contextlib.suppress(Exception):  # the machine may be gone
            call("release", token, run_id)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what the disk here says into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise UnwritableError.of(path, error) from None


def _is_same(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and digest_file(path) == sha256
    except OSError:
        return False


def _receive(
    call: Call, token: str, run_id: str, name: str, temporary: Path, told: tuple[int, str], check: Callable[[], None]
) -> bool:  # fmt: skip
    """Writes a file of a machine to a temporary place here; whether it is what it should be."""
    (size, sha256), path = told, temporary.parent / name
    digest, offset = hashlib.sha256(), 0
    with _writing(path):
        file = temporary.open("wb", buffering=0)
    with file:
        while offset < size:
            content = memoryview(call("read", token, run_id, name, offset))
            if not content:
                return False
            check()
            digest.update(content)
            offset += len(content)
            with _writing(path):
                while content:
                    content = content[file.write(content) :]
        with _writing(path):
            os.fsync(file.fileno())
    return offset == size and digest.hexdigest() == sha256


def _put_in_place(
    folder: Path, fetched: Mapping[str, Path], there: Mapping[str, Any], checkpoint: bool, check: Callable[[], None]
) -> None:
    """Gives files their names, and removes those that the run's process has removed."""
    gone = [name for name in list_run(folder) if name not in there and not name.startswith("damaged.")]
    if checkpoint:
        states = any(name.startswith(_STATE) for name in there)
        gone = [name for name in gone if states and name.startswith(f"{CHECKPOINT}/")]
    elif RECORD_FILE not in there and PAUSED_FILE not in there:  # it has not come to an end
        gone = []
    kept = (f"{CHECKPOINT}/", PAUSED_FILE, RECORD_FILE)  # until what takes their place is there
    for name in gone:
        if not name.startswith(kept):
            _remove(folder / name, check)
    for name in sorted(fetched, key=_rank):
        path = folder / name
        check()
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            fetched[name].replace(path)
        sync_folder(path.parent)
    for name in sorted(gone, key=_rank, reverse=True):
        _remove(folder / name, check)
    with contextlib.suppress(OSError):  # there is none, or it holds something
        (folder / CHECKPOINT).rmdir()


def _rank(name: str) -> int:
    return next((rank for rank, last in enumerate(_LAST, 1) if name.startswith(last)), 0)


def _remove(path: Path, check: Callable[[], None]) -> None:
    check()
    with _writing(path):
        path.unlink(missing_ok=True)

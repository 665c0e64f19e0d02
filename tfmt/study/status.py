"""How a sweep stands, told from its folder alone, whoever runs it and where; and what lies there that nobody needs.

Weights, data and TensorFlow are left alone. Times are the disk's own: where a run is held one probe is written for that
and removed, unless the folder is one to look at only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from tfmt.bert.configs import public_name
from tfmt.errors import RequestError, RunError
from tfmt.files import UnreadableError, exists
from tfmt.runs.folder import CHECKPOINT, UnkeptError, check_kept, list_checkpoint, list_leftovers, read_stored_spec
from tfmt.runs.lease import LEASE_SECONDS, Holder, Lease, TakenError, disk_clock, find_holder, is_lease
from tfmt.runs.paused import PAUSED_FILE, Paused, read_paused
from tfmt.runs.records import RECORD_FILE, Record, read_record
from tfmt.runs.runner import SCORES_FOLDER
from tfmt.selection.stored import TUNED_FILE
from tfmt.spec import ARITHMETIC, RunSpec, digest_json
from tfmt.study.dry_run import digest_settings
from tfmt.study.grid import Grid, HeldOutUnion
from tfmt.study.search import Course, Search, Slot, cell_of, own_spec
from tfmt.study.times import format_seconds
from tfmt.words import counted, format_bytes

_MOST_LISTED = 20
_PROBE_SECONDS = 3600.0  # a probe of a living process is gone in a moment
_INDENT = " " * 10


@dataclass(frozen=True)
class Found:
    """What a run's folder says.

    Attributes:
      folder: the folder.
      holder: who is at it.
      record: what its record says, if it has ended.
      paused: how far it came before a search stopped it, if one did.
      spec: the run, None where nothing tells it.
      digests: of its base model and data.
      own: the run is of this arithmetic, and the folder has its name: a sweep would go on with it.
      broken: a message for each file that cannot be read.
      damaged: whether its record is among them.
    """

    folder: Path
    holder: Holder
    record: Record | None = None
    paused: Paused | None = None
    spec: RunSpec | None = None
    digests: tuple[Any, Any] = (None, None)
    own: bool = False
    broken: tuple[str, ...] = ()
    damaged: bool = False

    @property
    def ended(self) -> str:
        """How the run ended: a record's status, `failed` where it is damaged; empty where there is none."""
        return self.record.status if self.record else "failed" * self.damaged

    def course(self) -> Course:
        """What the run has shown, as a sweep that meets its files takes it."""
        course = Course.of(self.paused.epochs, self.paused.score_name) if self.paused else Course()
        result = self.record.result if self.record else None
        if result is not None and self.ended != "failed":
            course = Course.of(result.epochs, result.score_name)
        return replace(course, ended=self.ended)


@dataclass
class Disk:
    """What lies below a folder, in bytes and files."""

    files: int = 0
    total: int = 0
    checkpoints: int = 0
    tuned: int = 0
    scores: int = 0


@dataclass
class Survey:
    """How a sweep stands.

    Attributes:
      slots: the runs of the grid, each with its state and the folder that it has.
      course: what a run has shown.
      others: how many folders are of other runs.
      unkept: how many runs that ended kept less than is asked for.
      broken: messages on files that cannot be read.
      disk: what all that takes.
      removable: what nobody needs, {folder: {file: bytes}}.
    """

    slots: list[tuple[Slot, str, Found | None]]
    course: Callable[[Slot], Course]
    others: int
    unkept: int
    broken: list[str]
    disk: Disk
    removable: dict[Path, dict[Path, int]] = field(default_factory=dict)


def survey(grid: Grid, output_dir: str | Path, search: str = "all") -> Survey:
    """Looks at a sweep's folder; sweeps may run in it meanwhile, here and elsewhere.

    Args:
      grid: the runs.
      output_dir: the folder of the runs' folders.
      search: the sweep's, see `study.search`.

    Raises:
      RequestError: there is no such folder.
    """
    root = Path(output_dir)
    if not root.is_dir():
        raise RequestError(f"--output_dir={output_dir}: no such folder; give the one that the sweep writes into")
    clock = disk_clock(root)
    found = [told for folder in _list_folders(root) if (told := _look_at(folder, clock)) is not None]
    matched = _match(grid, found)
    plan = Search(grid, search)
    for slot, told in matched.items():
        plan.note(slot, told.course())
    slots: tuple[Slot, ...] = (*grid.runs, *grid.unions)
    stands = [(slot, _state_of(slot, matched.get(slot), plan), matched.get(slot)) for slot in slots]
    ours = {told.folder for told in matched.values()}
    made = Survey(
        stands,
        plan.course,
        sum(told.folder not in ours and told.spec is not None for told in found),
        sum(_is_unkept(own_spec(slot), told) for slot, told in matched.items()),
        [message for told in found for message in told.broken],
        _measure(root),
    )
    mixed = _find_mixed(matched)
    for slot, state, told in stands:
        if told is not None:
            dropped = state == "stopped" and cell_of(slot)[0] not in mixed
            made.removable[told.folder] = _list_removable(told, dropped, clock)
    for folder in _list_folders(root / SCORES_FOLDER):
        with contextlib.suppress(UnreadableError):
            if find_holder(folder, clock).state == "none":
                made.removable[folder] = _sizes(_leftovers(folder, clock))
    made.removable[root] = _sizes(path for path in sorted(root.glob(".*")) if _is_probe(path) and _is_old(path, clock))
    made.removable = {folder: files for folder, files in made.removable.items() if files}
    return made


def clean(grid: Grid, output_dir: str | Path, search: str = "all") -> str:
    """Removes what nobody needs: what a survey calls removable, of folders that no living process holds.

    Args:
      grid, output_dir, search: as for `survey`.

    Returns:
      What was removed, as text.

    Raises:
      RequestError: there is no such folder.
    """
    clock = disk_clock(Path(output_dir))
    files = size = 0
    refused: list[str] = []
    surveyed = survey(grid, output_dir, search)
    dropped = {told.folder for _, state, told in surveyed.slots if told is not None and state == "stopped"}
    for folder, listed in surveyed.removable.items():
        try:
            if folder == Path(output_dir):
                _remove(listed)
            else:
                with Lease(folder):  # where there is a record it takes all leases along
                    _remove(listed.keys() & _list_again(folder, folder in dropped, clock))
        except TakenError:  # somebody goes on with it now
            continue
        except (RunError, OSError) as error:
            refused.append(str(error))
        gone = [path for path in listed if not path.exists()]
        files, size = files + len(gone), size + sum(listed[path] for path in gone)
    lines = [f"removed   {counted(files, 'file')}, {format_bytes(size)}"]
    if refused:
        more = f" (and in {counted(len(refused) - 1, 'other folder')})" if len(refused) > 1 else ""
        lines.append(f"{_INDENT}not all: {refused[0]}{more}")
    return "\n".join(lines)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
        if path.parent.name == CHECKPOINT:
            with contextlib.suppress(OSError):  # the next file of it lies there, or something of somebody else's
                path.parent.rmdir()


# ---- what lies there -------------------------------------------------------------------------------------------------


def _list_folders(root: Path) -> list[Path]:
    """The folders in a folder."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _look_at(folder: Path, clock: Callable[[], float]) -> Found | None:
    """What a run's folder says; None where it is no run's.

    Who holds it is read first: who ends between the two reads is told of by what it leaves.
    """
    try:
        told = Found(folder, find_holder(folder, clock))
    except UnreadableError as error:
        return Found(folder, Holder(), broken=(str(error),))
    broken: list[str] = []

    def read(reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(folder)
        except (RequestError, UnreadableError) as error:
            broken.append(str(error))
            return None

    record = read(lambda folder: read_record(folder) if exists(folder / RECORD_FILE) else None)
    told = replace(told, record=record, damaged=bool(broken))
    paused = read(read_paused) if record is None or record.status == "failed" else None
    stored = read(read_stored_spec) if record is None and paused is None else None
    told = replace(told, paused=paused, broken=tuple(broken))
    if record is not None:
        origin = record.origin
        return replace(
            told, spec=record.spec, digests=(origin.model_sha256, origin.data_sha256),
            own=origin.arithmetic == ARITHMETIC and record.run_id == folder.name,
        )  # fmt: skip
    if paused is not None:
        return replace(
            told, spec=paused.spec, digests=(paused.model.sha256, paused.data_sha256),
            own=paused.arithmetic == ARITHMETIC and paused.run_id == folder.name,
        )  # fmt: skip
    if stored is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # by another version
            identity, spec = stored["identity"], RunSpec.model_validate_json(json.dumps(stored["spec"]))
            digests = identity["digests"]
            return replace(
                told, spec=spec, digests=(digests.get("model"), digests.get("data")),
                own=identity["arithmetic"] == ARITHMETIC
                and folder.name == f"{spec.label()}-{digest_json(identity)[:10]}",
            )  # fmt: skip
    return told if broken else None


def _match(grid: Grid, found: list[Found]) -> dict[Slot, Found]:
    """The folder of each run of the grid that has one, as far as settings tell.

    Of several, on other data or another base model, the one counts whose model and data are named as in the grid, and
    then the one that was touched last.
    """
    owned = [told for told in found if told.own and told.spec is not None]
    names = {told.folder.name: told.spec for told in owned if told.spec is not None}
    by_key: dict[Any, list[Found]] = {}
    for told in owned:
        assert told.spec is not None
        key: Any = digest_settings(told.spec)
        if told.spec.fisher_from:
            named = [PurePath(source).name for source in told.spec.fisher_from]
            key = _union_key(told.spec, [names[name] for name in named]) if names.keys() >= set(named) else None
        by_key.setdefault(key, []).append(told)
    matched: dict[Slot, Found] = {}
    slots: tuple[Slot, ...] = (*grid.runs, *grid.unions)
    for slot in slots:
        own = own_spec(slot)
        key = digest_settings(own)
        if isinstance(slot, HeldOutUnion):
            key = _union_key(slot.spec(lambda source: source.label()), slot.sources)
        alike = [told for told in by_key.get(key, ()) if told.spec is not None and _is_like(told.spec, own)]
        if alike:
            matched[slot] = max(alike, key=lambda told: _standing(told, own))
    return matched


def _union_key(spec: RunSpec, sources: Iterable[RunSpec]) -> tuple[str, frozenset[str]]:
    """Equal for a union of a grid and its run, whose sources may be of any rate: a mask hangs on none."""
    rate = {"learning_rate": 1.0}
    masks = (digest_settings(source.model_copy(update=rate)) for source in sources)
    return digest_settings(spec), frozenset(masks)


def _is_like(spec: RunSpec, wanted: RunSpec) -> bool:
    """Whether model and data, which settings name by their places, may be the same on another machine."""
    same_data = spec.task != "custom" or PurePath(spec.data_dir).name == PurePath(wanted.data_dir).name
    return public_name(spec.model) == public_name(wanted.model) and spec.revision == wanted.revision and same_data


def _standing(told: Found, wanted: RunSpec) -> tuple[bool, float]:
    assert told.spec is not None
    named = (told.spec.model, told.spec.data_dir) == (wanted.model, wanted.data_dir)
    with contextlib.suppress(OSError):
        return named, told.folder.stat().st_mtime
    return named, 0.0


def _state_of(slot: Slot, told: Found | None, plan: Search) -> str:
    """Where a run of the grid stands."""
    if told is not None and told.ended not in ("", "failed"):
        return "done"
    if told is not None and told.holder.state != "none":
        return "held" if told.holder.state == "silent" else "running"
    if told is not None and told.ended:
        return "failed"
    granted, done = plan.granted(slot), plan.course(slot).epochs
    if granted is None:
        return "stopped" if done else "spared"
    if done and done >= granted:
        return "paused"
    return "not begun" if told is None else "begun"


def _is_unkept(spec: RunSpec, told: Found) -> bool:
    try:
        if told.record is not None:
            check_kept(spec, told.record, told.folder)
    except UnkeptError:
        return True
    return False


def _find_mixed(matched: dict[Slot, Found]) -> set[Any]:
    """Cells whose runs are of several base models or data: what they show together decides nothing."""
    digests: dict[Any, set[Any]] = {}
    for slot, told in matched.items():
        digests.setdefault(cell_of(slot)[0], set()).add(told.digests)
    return {cell for cell, seen in digests.items() if len(seen) > 1}


# ---- what nobody needs -----------------------------------------------------------------------------------------------


def _list_removable(told: Found, dropped: bool, clock: Callable[[], float]) -> dict[Path, int]:
    """What lies in a run's folder and nobody needs, {file: bytes}.

    Args:
      told: what the folder says.
      dropped: the run was stopped by a search, and is not gone on with.
      clock: the disk's.
    """
    if told.holder.state != "none" or told.broken or told.folder.is_symlink():
        return {}
    paths = _leftovers(told.folder, clock)
    if told.record is not None:
        paths += sorted(path for path in told.folder.glob("lease.*") if is_lease(path.name))
    if told.ended not in ("", "failed"):
        paths += [told.folder / PAUSED_FILE, *list_checkpoint(told.folder)]
    elif dropped and told.paused is not None and told.record is None:
        paths += list_checkpoint(told.folder)
    return _sizes(paths)


def _list_again(folder: Path, dropped: bool, clock: Callable[[], float]) -> set[Path]:
    """What may be removed of a folder now that this process holds it."""
    told = _look_at(folder, clock)
    if told is None:  # a folder of scores
        return set(_leftovers(folder, clock))
    return set(_list_removable(replace(told, holder=Holder()), dropped, clock))


def _leftovers(folder: Path, clock: Callable[[], float]) -> list[Path]:
    return [path for path in list_leftovers(folder) if not _is_probe(path) or _is_old(path, clock)]


def _is_probe(path: Path) -> bool:
    """Whether a file is what a process leaves that was killed while it tried the disk."""
    return re.fullmatch(r"\.(probe\.[0-9a-f]+|clock\.\d+\.[0-9a-f]+)", path.name) is not None


def _is_old(path: Path, clock: Callable[[], float]) -> bool:
    with contextlib.suppress(OSError):
        return clock() - path.lstat().st_mtime > _PROBE_SECONDS
    return False


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    """Bytes of those that are there, and files."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                found[path] = path.lstat().st_size
    return found


def _measure(root: Path) -> Disk:
    """What lies below a folder; links count as themselves."""
    disk = Disk()
    for place, _, names in os.walk(root):
        parts = Path(place).relative_to(root).parts
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                size = os.lstat(os.path.join(place, name)).st_size
                disk.files, disk.total = disk.files + 1, disk.total + size
                disk.checkpoints += size * (parts[1:2] == (CHECKPOINT,))
                disk.tuned += size * (len(parts) == 1 and name == TUNED_FILE)
                disk.scores += size * (parts[:1] == (SCORES_FOLDER,))
    return disk


# ---- as text ---------------------------------------------------------------------------------------------------------


def describe_status(grid: Grid, output_dir: str | Path, search: str = "all", width: int = 200) -> str:
    """How a sweep stands, as text.

    Args:
      grid, output_dir, search: as for `survey`.
      width: columns of the terminal.

    Raises:
      RequestError: there is no such folder.
    """
    told = survey(grid, output_dir, search)
    states: dict[str, list[tuple[Slot, Found | None]]] = {}
    for slot, state, found in told.slots:
        states.setdefault(state, []).append((slot, found))

    def count(state: str) -> str:
        return f"{state:<9} {len(states.get(state, ())):,}"

    def listed(state: str, tell: Callable[[Found], str]) -> Iterator[tuple[str, str]]:
        return ((found.folder.name, tell(found)) for _, found in states.get(state, ()) if found is not None)

    diverged = sum(found is not None and found.ended == "diverged" for _, found in states.get("done", ()))
    lines = [
        f"runs      {len(told.slots):,}",
        count("done") + (f" ({diverged:,} of them diverged)" if diverged else ""),
    ]
    if told.unkept:
        lines.append(
            f"{_INDENT}{told.unkept:,} of them without the weights that --keep=tuned asks for, which the sweep refuses"
        )
    lines.append(count("failed") + " (--retry_failed: again)" * ("failed" in states))
    lines += _list(listed("failed", _tell_failure), width)
    lines.append(count("running"))
    lines += _list(listed("running", _tell_holder), width)
    if "held" in states:
        lines.append(count("held") + " (by a process that gives no sign; another may go on once it is free)")
        lines += _list(listed("held", _tell_holder), width)
    if "paused" in states:
        lines.append(f"{count('paused')} (wait for what others show, --search={search})")
    if "stopped" in states or "spared" in states:
        spared = len(states.get("spared", ()))
        more = f", and {spared:,} not begun for that reason" if spared else ""
        lines.append(f"{count('stopped')} (not gone on with, as others are better{more})")
    if "begun" in states:
        lines.append(count("begun") + " (nobody is at them; the next sweep goes on)")
    lines.append(count("not begun"))
    if told.others:
        lines.append(f"others    {counted(told.others, 'run')} of other studies")
    if told.broken:
        lines.append(f"unread    {counted(len(told.broken), 'file')}")
        lines += _list(((message, "") for message in told.broken), width)
    disk = told.disk
    lines.append(f"disk      {format_bytes(disk.total)} in {counted(disk.files, 'file')}: checkpoints "
                 f"{format_bytes(disk.checkpoints)}, tuned weights {format_bytes(disk.tuned)}, scores "
                 f"{format_bytes(disk.scores)}")  # fmt: skip
    sizes = [size for files in told.removable.values() for size in files.values()]
    removable = f"{counted(len(sizes), 'file')}, {format_bytes(sum(sizes))}, which --clean removes"
    lines.append(f"clean     {removable if sizes else 'nothing to remove'}")
    lines.append(f"{_INDENT}(told from settings alone: weights and data, which run ids also depend on, were not read)")
    return "\n".join(lines)


def _list(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Names with what is told of each, beside them where all fit and else below them."""
    rows = list(rows)
    shown = rows[:_MOST_LISTED]
    longest = max((len(name) for name, _ in shown), default=0)
    beside = all(len(_INDENT) + longest + 2 + len(told) <= width for _, told in shown)
    for name, told in shown:
        if beside:
            yield f"{_INDENT}{name:<{longest}}  {told}".rstrip()
        else:
            yield _INDENT + name
            if told:
                yield f"{_INDENT}  {told}"
    if len(rows) > len(shown):
        yield f"{_INDENT}and {len(rows) - len(shown):,} more"


def _tell_failure(found: Found) -> str:
    told = (found.record.error if found.record else "its record is damaged, see below") or ""
    return (told.splitlines() or [""])[0]


def _tell_holder(found: Found) -> str:
    """`epoch 2/5 on node3, process 4711, last sign 4 s ago`."""
    holder = found.holder
    process = f"process {holder.pid}" if holder.pid is not None else "a process"
    told = f"{holder.host}, {process}" if holder.host else process
    if (epoch := _find_epoch(found)) is not None:
        told = f"epoch {epoch} on {told}"
    if holder.state == "silent":
        free = max(LEASE_SECONDS - holder.seconds, 0.0)
        return f"{told}, silent for {format_seconds(holder.seconds)}, free in {format_seconds(free)}"
    return f"{told}, last sign {format_seconds(holder.seconds)} ago"


def _find_epoch(found: Found) -> str | None:
    """In which epoch a run is, by its checkpoint's name; None where there is none yet."""
    ended = [
        int(place[1]) for path in list_checkpoint(found.folder) if (place := re.match(r"state\.(\d+)-", path.name))
    ]
    if found.spec is None or not ended:
        return None
    return f"{min(max(ended) + 1, found.spec.epochs)}/{found.spec.epochs}"

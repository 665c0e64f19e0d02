"""Flagfiles: where one is found, and how its lines take the place of `--flagfile`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tfmt.errors import RequestError
from tfmt.files import check_path

_DEEPEST = 9


def _own_folders() -> tuple[Path, Path]:
    """Where tfmt's own flagfiles lie: the repository's flags/, which is tfmt/flagfiles/ where tfmt is installed."""
    package = Path(__file__).resolve().parent
    return package / "flagfiles", package.parent / "flags"


def find_flagfile(name: str, beside: Path | None = None) -> Path:
    """The file that `--flagfile=name` means.

    A path is looked for beside the flagfile that names it, then from the working directory. A bare name, without a
    folder, may also be one of tfmt's own.

    Args:
      name: a path or a bare name.
      beside: the flagfile that holds the name; None for the command line.

    Raises:
      RequestError: there is none; names the folder if it is missing, too.
    """
    path = check_path(name, "--flagfile").expanduser()
    bare = path.name == name
    places = [path] if beside is None else [beside.parent / path, path]
    if bare:
        places += [folder / name for folder in _own_folders()]
    for place in places:
        if place.exists() and not place.is_dir():  # a pipe will do
            return place
    own = sorted({file.name for folder in _own_folders() for file in folder.glob("*.flags")})
    where = "" if beside is None else f"{beside}: "
    if bare:
        raise RequestError(f"{where}--flagfile={name}: no such file; tfmt's own are {', '.join(own)}")
    missing = "no such file" if any(place.parent.is_dir() for place in places) else f"there is no folder {path.parent}"
    hint = f"; tfmt's own is --flagfile={path.name}" if path.name in own else ""
    raise RequestError(f"{where}--flagfile={name}: {missing}{hint}")


def expand_flagfiles(arguments: Sequence[str], beside: Path | None = None, depth: int = 0) -> list[str]:
    """Puts the lines of flagfiles in the place of `--flagfile`; later flags win.

    As in absl an empty `--flagfile=` is passed over.

    Raises:
      RequestError: a flagfile is missing, unreadable, includes itself, or holds a line that is no flag.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, name = argument.partition("=")
        if flag not in ("--flagfile", "-flagfile"):
            found.append(argument)
            continue
        if not equals:
            try:
                name = next(rest)
            except StopIteration:
                raise RequestError("--flagfile needs a value: --flagfile=NAME.flags") from None
        if not name.strip():
            continue
        path = find_flagfile(name.strip(), beside)
        if depth > _DEEPEST:
            raise RequestError(f"{path}: flagfiles include each other without end")
        found += expand_flagfiles(list(_read_lines(path)), path, depth + 1)
    return found


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a flagfile that are flags; an editor's byte order mark is no part of the first."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not readable: {error}") from None
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        if not line.startswith("-"):
            raise RequestError(f"{path} line {number}: expected --name=value. Received: {line!r}")
        yield line

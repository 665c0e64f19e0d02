"""One style for all figures: readable in black and white and by colour-blind readers.

Colours are those of Okabe & Ito (2008, "Color Universal Design") without the yellow, which is too faint for lines; no
two lines share a colour, a line style and a marker. Maps of values are `cividis` (Nunez et al., 2018), whose lightness
alone tells the values, dark for large.
"""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from tfmt import files
from tfmt.errors import RequestError
from tfmt.files import whole_file

COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MAP = "cividis_r"
PALE = "0.85"
ENDINGS = (".png", ".pdf", ".svg")
_DPI = 150
# The width of a letter of legends and of titles in inches, a little more than the mean.
_LETTER, _TITLE_LETTER = 0.064, 0.068
_SETTINGS: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "text.usetex": False,
}
# Left to themselves SVG files differ in their ids from one time to the next.
_SAVED: Any = {"svg.hashsalt": "tfmt", "pdf.fonttype": 42, "savefig.bbox": None, "savefig.transparent": False}
_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draws in tfmt's style and leaves matplotlib's settings as they were."""

    @functools.wraps(draw)
    def within(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        with mpl.rc_context(_SETTINGS):
            return draw(*arguments, **keywords)

    return within


def look(number: int) -> dict[str, Any]:
    """Colour, line style and marker of the n-th line."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def make_panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """A figure of panels of a size in inches each, and the panels as an array of (rows, columns)."""
    figure = Figure(figsize=(max(width * columns, 3.2), height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def make_task_panels(tasks: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each task, at most three beside each other: about the width of a paper's page."""
    columns = {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    width, height = {1: (5.2, 3.0), 2: (3.4, 2.6)}.get(columns, (2.7, 2.4))
    figure, panels = make_panels(math.ceil(len(tasks) / columns), columns, width, height)
    for empty in panels.flat[len(tasks) :]:
        empty.remove()
    return figure, list(panels.flat[: len(tasks)])


def finish_figure(figure: Figure, handles: dict[str, Any], notes: Sequence[str] = (), above: float = 0.0) -> None:
    """One legend below all panels, as many columns as fit, and above them what the reader must know.

    The page grows by what they and the panels' titles take, so that no panel pays for them.

    Args:
      figure: with its panels drawn, at the size that these need with titles of one line.
      handles: label to artist; a label that is too long for the page is broken into lines.
      notes: sentences.
      above: how many points stand between a panel and its title.
    """
    width = figure.get_figwidth()
    lines = 0
    if handles:
        labels = [_wrap(label, width - 0.75, _LETTER) for label in handles]
        columns = _count_columns(labels, width)
        lines += max(sum(label.count("\n") + 1 for label in column) for column in _split(labels, columns))
        figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=columns)
    if notes:
        told = "\n".join(_wrap(note, width - 0.2, _LETTER) for note in notes)
        figure.suptitle(told, fontsize=8, style="italic")
        lines += told.count("\n") + 1
    titles: dict[int, int] = {}  # of each row of panels the lines beyond the first
    for panel in figure.axes:
        place = panel.get_subplotspec()
        if place is not None:
            titles[place.rowspan.start] = max(titles.get(place.rowspan.start, 0), panel.get_title().count("\n"))
    lines += sum(titles.values())
    inches = 0.17 * lines + (0.1 if handles else 0) + len(titles) * above / 72
    figure.set_figheight(figure.get_figheight() + inches)


def _count_columns(labels: Sequence[str], width: float) -> int:
    """The most columns of a legend that fit a width in inches."""
    for columns in range(len(labels), 1, -1):
        letters = (
            max(len(line) for label in column for line in label.split("\n")) for column in _split(labels, columns)
        )
        if sum(0.62 + _LETTER * count for count in letters) < width:
            return columns
    return 1


def _split(labels: Sequence[str], columns: int) -> list[Sequence[str]]:
    """A legend's columns: it is filled column by column, the first ones longer by one."""
    short, longer = divmod(len(labels), columns)
    ends = [number * short + min(number, longer) for number in range(columns + 1)]
    return [labels[start:end] for start, end in itertools.pairwise(ends)]


def tick_whole(axis: Axis, first: int, last: int, most: int = 12) -> None:
    """Ticks at whole numbers from the first to the last, at most so many."""
    axis.set_ticks(list(range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))))


def set_title(panel: Axes, text: str, inches: float | None = None, **options: Any) -> None:
    """A panel's title, its lines broken at a width; as a rule the panel's with the gap beside it."""
    if inches is None:
        place, figure = panel.get_subplotspec(), panel.get_figure()
        assert place is not None
        assert isinstance(figure, Figure)
        inches = figure.get_figwidth() / place.get_gridspec().ncols - 0.3
    panel.set_title("\n".join(wrap_title(line, inches) for line in text.split("\n")), **options)


def wrap_title(text: str, inches: float) -> str:
    """A title in lines that fit a width."""
    return _wrap(text, inches, _TITLE_LETTER)


def _wrap(text: str, inches: float, letter: float) -> str:
    return "\n".join(textwrap.wrap(text, max(12, int(inches / letter))))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, PDF or SVG, whole or not at all; the same figure gives the same file.

    Args:
      figure: the figure.
      path: the file; its ending says what it becomes.

    Raises:
      RequestError: another ending, or no such folder.
      RunError: the file cannot be written.
    """
    path = check_output(path)
    dated = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    ending = path.suffix.lower()
    with mpl.rc_context(_SAVED), whole_file(path) as temporary:
        figure.savefig(temporary, format=ending[1:], dpi=_DPI, metadata=dated[ending])


def check_output(path: str | Path, flag: str = "--output", endings: Sequence[str] = ENDINGS) -> Path:
    """The path of a file to write, or a `RequestError` that says why it cannot be one."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise RequestError(f"{flag}={path}: the name must end in {', '.join(endings)}")
    files.check_output(path, flag)
    return path

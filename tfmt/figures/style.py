"""One style for all figures: readable in black and white and by colour-blind readers.

Colours are those of Okabe & Ito (2008, "Color Universal Design") without the yellow, which is too faint for lines; no
two lines share a colour, a line style and a marker. Maps of values are `cividis` (Nunez et al., 2018), whose lightness
alone tells the values, dark for large.
"""

from __future__ import annotations

import functools
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

from tfmt.errors import RequestError
from tfmt.files import whole_file

COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MAP = "cividis_r"
PALE = "0.85"
ENDINGS = (".png", ".pdf", ".svg")
_DPI = 150
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


def make_task_panels(tasks: Sequence[str], width: float = 3.4, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each task, at most four beside each other."""
    columns = min(len(tasks), 4 if len(tasks) != 6 else 3)
    rows = math.ceil(len(tasks) / columns)
    figure, panels = make_panels(rows, columns, width, height)
    for empty in panels.flat[len(tasks) :]:
        empty.set_axis_off()
    return figure, list(panels.flat[: len(tasks)])


def add_legend(figure: Figure, handles: dict[str, Any]) -> None:
    """One legend below all panels, as many columns as fit."""
    if not handles:
        return
    inches = 0.65 + 0.062 * max(map(len, handles))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def tick_whole(axis: Axis, first: int, last: int, most: int = 12) -> None:
    """Ticks at whole numbers from the first to the last, at most so many."""
    axis.set_ticks(list(range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))))


def wrap_title(text: str, inches: float) -> str:
    """A title in lines that fit a width."""
    return "\n".join(textwrap.wrap(text, max(12, int(inches / 0.075))))


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
    if not path.parent.is_dir():
        raise RequestError(f"{flag}={path}: no such folder as {path.parent}")
    return path

"""The figures of a study as SVG to stand inside a page."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from tfmt import figures
from tfmt.errors import RequestError
from tfmt.runs.records import Sources, name_sources
from tfmt.words import without_folders

# Title of each figure, and how it is read; a figure that is not named here comes after these, under its own name.
_TOLD = {
    "rates": (
        "Score by learning rate",
        "Means over seeds with one standard deviation. A ring: the rate with the best mean over all seeds; hollow:"
        " some seeds were lost; crossed: all; a pale square: seeds that predict one class.",
    ),
    "curves": (
        "Training loss and score by epoch",
        "Each row at the rate with the best mean over all seeds. Thin lines are seeds, the thick one their mean; a"
        " cross: a run that diverged; an arrow: a loss beyond the axis.",
    ),
    "frontier": (
        "Score by tuned weights",
        "Means over seeds with one standard deviation, each point at its own rate; hollow: that rate is the lowest or"
        " highest that was tried. Single points have no budget.",
    ),
    "layers": ("Score by block", "The LayerNorms of one block alone are tuned; lines are whole models."),
    "change": (
        "How far full fine-tuning moved the weights",
        "Mean |fine-tuned - pre-trained| of each component, and by block.",
    ),
    "weights": (
        "Distributions of weights",
        "Pre-trained beside fully fine-tuned, over all blocks; above each panel Sarle's coefficient (two modes above"
        " 0.56).",
    ),
    "fisher": ("Fisher information", "Sum and mean per weight of each component, and by block; hatched: none."),
    "where": (
        "Where selected weights lie",
        "Share of each component's weights by block; below, the percent of the smaller selection that is in the other,"
        " and how many times what two random ones share.",
    ),
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# Texts stay texts, to be found, read aloud and printed sharp, in whatever font is at hand: matplotlib's is a wide one.
_SAVED: Any = {"svg.hashsalt": "tfmt", "svg.fonttype": "none", "savefig.bbox": None, "savefig.transparent": False}
# A dot of a hatch, as eight curves.
_DOT = re.compile(r"M (?:[^CMz]+C ){8}[^CMz]+z ?")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes:
      name: as in `tfmt-analyze --figure`.
      title: what it shows.
      reading: how it is read.
      svg: the picture; empty if there is none.
      notes: what it leaves out; or why there is none.
    """

    name: str
    title: str
    reading: str
    svg: str
    notes: tuple[str, ...]


def draw_all(runs: Sources, where: str = "", epoch: str = "best") -> Iterator[Drawing]:
    """Every figure that is made from runs; of one for which there are none, why.

    Args:
      runs: what `--runs` was given.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores.
    """
    names = [name.removeprefix("plot_") for name in figures.__all__ if name.startswith("plot_")]
    order = list(_TOLD)
    for name in sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)):
        draw = getattr(figures, f"plot_{name}")
        if "runs" not in inspect.signature(draw).parameters:
            continue  # of a model
        title, reading = _TOLD.get(name, (name.replace("_", " ").capitalize(), ""))
        try:
            figure, frame = draw(runs, where=where, epoch=epoch)
        except RequestError as error:
            reason = without_folders(str(error).removeprefix(f"--runs={name_sources(runs)}: "))
            yield Drawing(name, title, reading, "", (reason,))
            continue
        notes = tuple(without_folders(note, 2) for note in frame.attrs.get("notes", ()))
        yield Drawing(name, title, reading, inline_svg(figure, name, title), notes)


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """A figure as an `<svg>` element that may stand beside others on one page.

    Ids are those that something refers to, behind the figure's name. Lengths have two decimals of a point.

    Args:
      figure: the figure.
      name: what ids begin with.
      title: what it is called where it cannot be seen.
    """
    file = io.StringIO()
    with mpl.rc_context(_SAVED):
        figure.savefig(file, format="svg", metadata={"Date": None})
    # Without its document type, which names an address.
    text = re.sub(r"<!DOCTYPE.*?>", "", _NOT_IN_XML.sub("\ufffd", file.getvalue()), count=1, flags=re.DOTALL)
    root = ElementTree.fromstring(text.encode())
    for parent, tag in ((root, "metadata"), (root.find(f"{_SVG}defs"), "style")):
        found = None if parent is None else parent.find(f"{_SVG}{tag}")
        if parent is not None and found is not None:
            parent.remove(found)  # who drew it; and a style that would hold for the whole page
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    for pattern in root.iter(f"{_SVG}pattern"):
        for path in pattern.iter(f"{_SVG}path"):
            _draw_dots(path)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = _tidy(element.text), _tidy(element.tail)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                if value in referred:
                    element.set("id", f"{name}-{value}")
            elif key == f"{_XLINK}href":
                element.set("href", f"#{name}-{value[1:]}" if value.startswith("#") else value)
            elif (tidied := _tidy_value(key, value, name)) is not None:
                element.set(key, tidied)
    for key in ("version", "height"):  # the width decides
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _draw_dots(path: ElementTree.Element) -> None:
    """Dots of a hatch as ends of lines without length: there are a thousand, and eight curves each take 300 letters."""
    data, style = " ".join(path.get("d", "").split()), path.get("style", "")
    dots = [list(map(float, re.findall(r"[-+]?[\d.]+(?:e[-+]?\d+)?", dot))) for dot in _DOT.findall(data)]
    width = re.search(r"stroke-width: ([\d.]+)", style)
    if not dots or _DOT.sub("", data).strip() or width is None:
        return
    # A dot begins at its bottom, and is at its top after four curves of six numbers.
    radius = abs(dots[0][1] - dots[0][25]) / 2
    path.set("d", " ".join(f"M{dot[0]} {(dot[1] + dot[25]) / 2}h0" for dot in dots))
    style = style.replace(width[0], f"stroke-width: {2 * radius + float(width[1]):g}")
    path.set("style", style.replace("stroke-linecap: butt", "stroke-linecap: round"))


def _tidy(text: str | None) -> str | None:
    """Nothing, where there are only blanks."""
    return text if text and text.strip() else None


def _tidy_value(key: str, value: str, name: str) -> str | None:
    """An attribute in few letters, its references by the figure's own ids; None where it says nothing."""
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        return re.sub(r"font-family: [^;]*(; )?|(?<=[:;]) ", "", value)
    if key in ("d", "x", "y", "width", "height", "transform", "points"):
        value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
        return None if value.startswith("rotate(-0 ") else " ".join(value.split())
    return value

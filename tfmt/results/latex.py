"""Tables as LaTeX that compiles as it stands, in one column or two."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfmt.results.formats import Block, Table

PACKAGES = ("array", "booktabs", "graphicx", "longtable")
_PAGE_LINES = 46  # of a table and its notes; no float may be higher than a page
_PAGE_CHARACTERS = 80  # of a line of a float; only shares of it matter
_SIZES = ((95, r"\scriptsize"), (110, r"\tiny"))  # of a longtable, which nothing shrinks, by characters of a line
_SENTENCE = 28  # characters from which on text is broken into lines
_LEAST = 16  # characters of such a line
_NUMBER = re.compile(r"[-+<>]?\d|-?$")

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "†": r"\dag{}",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
    }
)


def to_latex(tables: Sequence[Table]) -> str:
    """Every block of every table as a float with a caption of one line and a label, its notes below the first.

    Blocks higher than a page are longtables, which two-column documents don't allow.
    """
    labels: Counter[str] = Counter()
    parts = [f"% needs \\usepackage{{{','.join(PACKAGES)}}}"]
    for table in tables:
        for number, block in enumerate(table.blocks or (None,)):
            label = "tab:tfmt-" + "-".join(_label_words(table.name, block.title if block else ""))
            labels[label] += 1
            label += f"-{labels[label]}" if labels[label] > 1 else ""
            title = _short_title(table.title) + (f": {block.title}" if block and block.title else "")
            heading = rf"\caption{{{escape(title)}}}\label{{{label}}}"
            notes = () if number else table.caption
            if block is None:
                lines = [r"\begin{table*}", r"\centering", heading, *_below(notes), r"\end{table*}"]
            elif _height(block, notes) > _PAGE_LINES:
                lines = _long(block, heading, _below(notes))
            else:
                lines = _float(block, heading, _below(notes))
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def escape(text: str) -> str:
    """Text as LaTeX prints it letter by letter: no ligature of two hyphens, no line break."""
    return " ".join(text.split()).translate(_ESCAPES).replace("--", "-{}-")


def _float(block: Block, heading: str, notes: list[str]) -> list[str]:
    return [
        r"\begin{table*}",
        r"\centering",
        heading,
        r"\par\smallskip\small\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # shrunk where it is too wide
        rf"\begin{{tabular}}{{{_columns(block)}}}",
        r"\toprule",
        _head(block),
        r"\midrule",
        *_rows(block),
        r"\bottomrule",
        r"\end{tabular}}",
        *notes,
        r"\end{table*}",
    ]


def _long(block: Block, heading: str, notes: list[str]) -> list[str]:
    least = _taken(block) + _LEAST * len(_sentences(block))
    characters, size = next((pair for pair in _SIZES if least <= pair[0]), _SIZES[-1])
    head = [r"\toprule", _head(block), r"\midrule"]
    return [
        r"\begingroup",
        size,
        r"\setlength{\tabcolsep}{2.5pt}",
        rf"\begin{{longtable}}{{{_columns(block, max(characters, least))}}}",
        heading + r" \\",
        *head,
        r"\endfirsthead",
        *head,
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *_rows(block),
        r"\end{longtable}",
        *notes,
        r"\endgroup",
    ]


def _below(notes: Sequence[str]) -> list[str]:
    """What the numbers are, below the table and in the width of the text."""
    if not notes:
        return []
    lines = [escape(line) + r"\par" for line in notes]
    return [
        r"\par\medskip\noindent",
        r"\begin{minipage}{\linewidth}",
        r"\footnotesize\raggedright",
        *lines,
        r"\end{minipage}",
    ]


def _columns(block: Block, characters: int = _PAGE_CHARACTERS) -> str:
    """Names to the left, numbers to the right, sentences in lines of a width that leaves room for the others."""
    lines = _line_lengths(block, characters)
    kinds = []
    for i in range(len(block.columns)):
        if i in lines:
            kinds.append(rf">{{\raggedright\arraybackslash}}p{{{lines[i] / characters:.2f}\linewidth}}")
        else:
            kinds.append("r" if i and all(_NUMBER.match(row[i]) for row in block.rows) else "l")
    return "".join(kinds)


def _line_lengths(block: Block, characters: int) -> dict[int, float]:
    """How many characters of a line the columns with sentences get."""
    sentences = _sentences(block)
    left = max(characters - _taken(block), _LEAST * len(sentences))
    shares = {i: min(_longest(block, i), 2 * characters) ** 0.5 for i in sentences}
    return {i: left * share / sum(shares.values()) for i, share in shares.items()}


def _taken(block: Block) -> int:
    """The characters of a line that the other columns and the gaps take."""
    sentences = _sentences(block)
    return sum(2 if i in sentences else 2 + _longest(block, i) for i in range(len(block.columns)))


def _height(block: Block, notes: Sequence[str]) -> int:
    """About how many lines the rows take, and the notes."""
    lengths = _line_lengths(block, _PAGE_CHARACTERS)
    lines = sum(math.ceil(len(note) / _PAGE_CHARACTERS) for note in notes)
    for row in block.rows:
        lines += max((math.ceil(len(row[i]) / length) for i, length in lengths.items()), default=1)
    return lines


def _longest(block: Block, i: int) -> int:
    return max(len(row[i]) for row in (block.columns, *block.rows))


def _sentences(block: Block) -> list[int]:
    """The columns with long texts, which can be broken at blanks and hyphens."""
    return [
        i
        for i in range(len(block.columns))
        if any(len(row[i]) > _SENTENCE for row in block.rows) and not all(_NUMBER.match(row[i]) for row in block.rows)
    ]


def _head(block: Block) -> str:
    return _line(escape(text) for text in block.columns)


def _rows(block: Block) -> list[str]:
    sentences = _sentences(block)
    lines = []
    for number, row in enumerate(block.rows):
        texts = [_breakable(text) if i in sentences else _cell(text) for i, text in enumerate(row)]
        lines.append(_line(rf"\textbf{{{t}}}" if (number, i) in block.bold else t for i, t in enumerate(texts)))
    return lines


def _line(cells: Iterable[str]) -> str:
    # A bracket or star at the start of a line would be taken for an argument of the `\\` before it.
    return " & ".join(("{}" if text.startswith(("[", "*")) else "") + text for text in cells) + r" \\"


def _cell(text: str) -> str:
    """A cell of one line; what a score has behind it is smaller, as it would widen its column."""
    score, bracket, behind = escape(text).partition(" (")
    return rf"{score} {{\tiny({behind}}}" if bracket and _NUMBER.match(text) else escape(text)


def _breakable(text: str) -> str:
    """A sentence whose long words, such as flags of commands, may be broken behind a sign."""
    words = (
        re.sub(r"([,=/_]|\\_)(?=.)", r"\1\\allowbreak{}", escape(word)) if len(word) >= _LEAST else escape(word)
        for word in text.split()
    )
    return " ".join(words)


def _short_title(title: str) -> str:
    """`Table 1: modules` as `Modules (P1, table 1)`: LaTeX has numbers of its own."""
    found = re.match(r"Table (\d): (.)(.*)", title)
    return f"{found[2].upper()}{found[3]} (P1, table {found[1]})" if found else title


def _label_words(*texts: str) -> list[str]:
    return [word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())]

"""What a selection trains, as a table of text, which the dry run prints too, and as a map for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

from tfmt.bert.vocabulary import BLOCK_SUBLAYERS


def format_summary(
    rows: Sequence[tuple[str, int, tuple[int, int]]], tuned: tuple[int, int], encoder: int, head: int
) -> str:
    """Rows of (name, weights, trained) as an aligned table with its totals.

    Args:
      rows: one a sublayer, trained at least and at most.
      tuned: selected weights without the classifier, at least and at most.
      encoder: all weights without the classifier.
      head: weights of the classifier.
    """
    width = max(len("sublayer"), *(len(name) for name, _, _ in rows))
    states = [_tell(bounds) if bounds[1] else "frozen" for _, _, bounds in rows]
    wide = max(13, *map(len, states))
    lines = [f"{'sublayer':<{width}}  {'weights':>13}  {'trained':>{wide}}"]
    lines += [
        f"{name:<{width}}  {size:>13,}  {state:>{wide}}" for (name, size, _), state in zip(rows, states, strict=True)
    ]
    percents = list(dict.fromkeys(f"{100 * count / encoder:.4f}" for count in tuned))
    lines.append(f"tuned     {_tell(tuned)} weights = {' to '.join(percents)} % of the encoder; the head has {head:,}")
    if tuned[0] != tuned[1]:
        lines.append("          (how many is known once the scores are)")
    return "\n".join(lines)


def format_terms(terms: Sequence[tuple[str, tuple[int, int]]]) -> str:
    """The terms of an expression with how many weights each selects, at least and at most."""
    counts = [_tell(bounds) for _, bounds in terms]
    width = max(map(len, counts))
    heads = ["select  ", *[" " * 8] * (len(terms) - 1)]
    rows = zip(heads, counts, terms, strict=True)
    return "\n".join(f"{head}  {count:>{width}}  {text}" for head, count, (text, _) in rows)


def _tell(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def format_map(weights: Sequence[tuple[int | None, str, int, int]], title: str) -> str:
    """A small HTML table, block x sublayer: dark where all trains, light where a part does, empty where nothing does.

    Args:
      weights: (block or None, sublayer, weights, trained) of every variable.
      title: stands above it.
    """
    sizes: dict[tuple[int | None, str], tuple[int, int]] = {}
    for block, sublayer, size, trained in weights:
        whole, part = sizes.get((block, sublayer), (0, 0))
        sizes[block, sublayer] = whole + size, part + trained
    blocks = sorted({block for block, _ in sizes if block is not None})
    outside = [sublayer for block, sublayer in sizes if block is None]
    rows = [_row("th", ["block", *BLOCK_SUBLAYERS])]
    rows += [_row("td", [str(block), *(sizes[block, name] for name in BLOCK_SUBLAYERS)]) for block in blocks]
    rows += [_row("td", [name, sizes[None, name]]) for name in outside]
    return f"<div>{html.escape(title)}<table>{''.join(rows)}</table></div>"


def _row(tag: str, cells: Sequence[str | tuple[int, int]]) -> str:
    return f"<tr>{''.join(_cell(tag, cell) for cell in cells)}</tr>"


def _cell(tag: str, cell: str | tuple[int, int]) -> str:
    if isinstance(cell, str):
        return f"<{tag}>{html.escape(cell)}</{tag}>"
    size, trained = cell
    strength = 0.0 if not trained else 0.9 if trained == size else 0.35
    shown = "" if not trained else f"{trained:,}" if trained == size else f"{trained:,} of {size:,}"
    colour = f"background: rgba(31, 119, 180, {strength})" + ("; color: white" if strength > 0.5 else "")
    return f'<{tag} title="{trained:,} of {size:,} weights" style="{colour}">{shown}</{tag}>'

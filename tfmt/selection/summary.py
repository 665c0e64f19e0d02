"""The table of a selection, shared by `Selection.summary` and the dry run."""

from __future__ import annotations

from collections.abc import Sequence


def format_summary(rows: Sequence[tuple[str, int, int]], tuned: int, percent: float, head: int) -> str:
    """Rows of (sublayer, weights, trained) as an aligned table with its totals.

    Args:
      rows: one a sublayer.
      tuned: selected weights without the classifier.
      percent: tuned in percent of the encoder.
      head: weights of the classifier.
    """
    width = max(len("sublayer"), *(len(name) for name, _, _ in rows))
    lines = [f"{'sublayer':<{width}}  {'weights':>13}  {'trained':>13}"]
    for name, size, selected in rows:
        state = f"{selected:,}" if selected else "frozen"
        lines.append(f"{name:<{width}}  {size:>13,}  {state:>13}")
    lines.append(f"tuned     {tuned:,} weights = {percent:.4f} % of the encoder; the head has {head:,}")
    return "\n".join(lines)

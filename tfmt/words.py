"""Numbers with what they count."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 epoch`, `2 epochs`, `1,512 runs`.

    Args:
      number: how many.
      noun: what, in the singular.
      plural: where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"

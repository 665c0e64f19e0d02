"""Tags that mark entities: IOB1 to IOB2."""

from __future__ import annotations

from collections.abc import Sequence


class OrphanTagError(ValueError):
    """An I- tag that continues nothing, in IOB2 tags.

    Attributes:
      sentence: which sentence, from 0.
      word: which of its words, from 0.
    """

    def __init__(self, tag: str, sentence: int, word: int):
        super().__init__(f"the tag {tag} continues no entity of its type, as IOB2 demands")
        self.sentence = sentence
        self.word = word


def to_iob2(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """The tags of a file as IOB2, in which every entity begins with B-.

    In IOB1 an entity begins with B- only where it follows another one of its own type. So tags are IOB2 if any B- does
    not follow an entity of its own type; otherwise they are IOB1 and are converted.

    Args:
      sentences: the tags of each sentence of the file.

    Raises:
      OrphanTagError: the tags are IOB2, and an I- does not continue an entity of its type.
    """
    iob2 = any(
        tag.startswith("B-") and not _continues(tag, before)
        for tags in sentences
        for before, tag in zip(["O", *tags], tags, strict=False)
    )
    converted = []
    for number, tags in enumerate(sentences):
        settled = list(tags)
        for word, tag in enumerate(tags):
            if tag.startswith("I-") and not _continues(tag, tags[word - 1] if word else "O"):
                if iob2:
                    raise OrphanTagError(tag, number, word)
                settled[word] = "B-" + tag[2:]
        converted.append(settled)
    return converted


def _continues(tag: str, before: str) -> bool:
    """Whether the word before belongs to an entity of the tag's type."""
    return before != "O" and before[2:] == tag[2:]

"""Tags that mark entities: how a data set spells them, the scheme a file is written in, and its tags as IOB2.

The schemes are those of seqeval: IOB1, IOB2, IOE1, IOE2, IOBES (also called BIOES) and BILOU. One rule finds the
entities in all of them, that of the evaluation script of CoNLL-2000 to 2003 (conlleval); the scheme is named so that
what departs from it can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

_PREFIXES = "BIESLU"
_PREFIXED = re.compile(rf"([{_PREFIXES}])-(.+)", re.DOTALL)
_SUFFIXED = re.compile(rf"(.+)-([{_PREFIXES}])", re.DOTALL)
# BILOU's letters for what IOBES calls the end of an entity and an entity of one word.
_LIKE_IOBES = {"L": "E", "U": "S"}
# A letter beside a type, in spellings that are not read but look as if entities were meant.
_AFFIXED = re.compile(r"(?P<first>[BIESLUMW])[-_.:/](?P<type>.+)|(?P<before>.+)[-_.:/](?P<last>[BIESLUMW])", re.I)


class Tag(NamedTuple):
    """A tag as read: B, I, E, S or O, and the entity's type ("" for O and where types are not written)."""

    prefix: str
    kind: str


OUTSIDE = Tag("O", "")


class Spelling(NamedTuple):
    """How a data set writes its tags.

    Attributes:
      form: `B-PER`, `PER-B` or `B`.
      outside: the tags that stand for O: `O`, `0`, or `I-O`.
    """

    form: Literal["prefix", "suffix", "untyped"]
    outside: frozenset[str]

    def letter(self, tag: str) -> str:
        """The letter of a tag as its scheme writes it, O for what stands outside."""
        if tag in self.outside:
            return "O"
        return tag[-1] if self.form == "suffix" else tag[0]

    def read(self, tag: str) -> Tag:
        """What a tag says, in IOBES's letters."""
        letter = self.letter(tag)
        if letter == "O":
            return OUTSIDE
        kind = "" if self.form == "untyped" else tag[:-2] if self.form == "suffix" else tag[2:]
        return Tag(_LIKE_IOBES.get(letter, letter), kind)


class Settled(NamedTuple):
    """The tags of a file in IOB2, in which every entity begins with B-.

    Attributes:
      tags: the tags of each sentence.
      notes: for the record: `scheme`, `entities`, `irregular` (entities that the scheme would write with other tags),
        and where they apply `form` and `outside` ({tag that stands for O: how often}).
    """

    tags: list[list[str]]
    notes: dict[str, Any]


def find_spelling(tags: Collection[str]) -> Spelling | None:
    """How the tags of a data set are written, or None if they don't all mark entities.

    `0` stands for O. So does `I-O`, unless there are other tags of a type O, or all types are single letters. Letters
    without types are taken for such tags only where there is an O.

    Args:
      tags: the distinct tags of all its files.
    """
    outside = {"O", "0"}.intersection(tags)
    marks = set(tags) - outside
    if marks <= set(_PREFIXES) and marks & {"B", "I"}:
        return Spelling("untyped", frozenset(outside)) if outside else None
    for form, pattern, letter, kind in (("prefix", _PREFIXED, 1, 2), ("suffix", _SUFFIXED, 2, 1)):
        found = {tag: match for tag in marks if (match := pattern.fullmatch(tag))}
        if marks and len(found) == len(marks):
            inside_o = {tag for tag, match in found.items() if match[kind] == "O"}
            if {found[tag][letter] for tag in inside_o} == {"I"} and any(
                len(match[kind]) > 1 for match in found.values()
            ):
                outside |= inside_o
            return Spelling(form, frozenset(outside)) if marks - outside else None  # type: ignore[arg-type]
    return None


def settle(sentences: Sequence[Sequence[str]], spelling: Spelling) -> Settled | None:
    """The tags of a file as IOB2, or None if its letters belong to no one scheme.

    Tags of B and I alone are IOB1 if more entities begin with I where IOB2 writes B than begin with B where IOB1
    writes I; otherwise they are IOB2. Tags of I and E alone are IOE1 or IOE2 by the mirror image of that rule. In
    every scheme a tag that continues nothing begins an entity, as conlleval counts it.

    Args:
      sentences: the tags of each sentence of the whole file.
      spelling: from `find_spelling`.
    """
    read = [[spelling.read(tag) for tag in tags] for tags in sentences]
    letters = {spelling.letter(tag) for tags in sentences for tag in tags} - {"O"}
    if letters <= {"B", "I"}:
        orphans, needless = _count_borders(read, "B")
        scheme, irregular = ("IOB1", needless) if orphans > needless else ("IOB2", orphans)
    elif letters <= {"I", "E"}:
        orphans, needless = _count_borders([tags[::-1] for tags in read], "E")
        scheme, irregular = ("IOE1", needless) if orphans > needless else ("IOE2", orphans)
    elif letters <= set("BIES") or letters <= set("BILU"):
        scheme = "IOBES" if letters <= set("BIES") else "BILOU"
        irregular = sum(not _is_whole(tags[start:end]) for tags in read for start, end in _entities(tags))
    else:
        return None
    settled, entities = [], 0
    for tags in read:
        converted = ["O"] * len(tags)
        for start, end in _entities(tags):
            kind = tags[start].kind and "-" + tags[start].kind
            converted[start:end] = ["B" + kind] + ["I" + kind] * (end - start - 1)
            entities += 1
        settled.append(converted)
    notes: dict[str, Any] = {"scheme": scheme, "entities": entities, "irregular": irregular}
    if spelling.form != "prefix":
        notes["form"] = spelling.form
    outside = {tag: sum(tags.count(tag) for tags in sentences) for tag in sorted(spelling.outside - {"O"})}
    return Settled(settled, notes | ({"outside": outside} if any(outside.values()) else {}))


def resemble_entities(tags: Collection[str]) -> bool:
    """Whether tags look as if they marked entities: letters beside types, letters alone, or brackets around words."""
    marks = set(tags) - {"O", "0", "o", "_", "-"}
    if any("*" in tag and ("(" in tag or ")" in tag) for tag in marks):
        return True
    if marks <= set("BIESLUMW") and "B" in marks:
        return len(tags) > 1
    affixed = [match for tag in marks if (match := _AFFIXED.fullmatch(tag))]
    return 2 * len(affixed) > len(marks) and any(
        (match["first"] or match["last"]).upper() in ("B", "I") for match in affixed
    )


def _begins(before: Tag, tag: Tag) -> bool:
    """Whether an entity begins at `tag`, by conlleval's rule."""
    return tag.prefix != "O" and (tag.prefix in "BS" or before.prefix in "OES" or before.kind != tag.kind)


def _entities(tags: Sequence[Tag]) -> Iterator[tuple[int, int]]:
    """The first word of each entity of a sentence and the word after its last."""
    start, before = None, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        begins = _begins(before, tag)
        if start is not None and (begins or tag.prefix == "O"):
            yield start, place
            start = None
        if begins:
            start = place
        before = tag


def _count_borders(sentences: Iterable[Sequence[Tag]], border: str) -> tuple[int, int]:
    """Entities that begin without the border letter, and with it where the entity before is of another type or none.

    A sentence in reverse is one of entities that end.
    """
    without = needless = 0
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            apart = before.prefix == "O" or before.kind != tag.kind
            without += tag.prefix == "I" and apart
            needless += tag.prefix == border and apart
            before = tag
    return without, needless


def _is_whole(tags: Sequence[Tag]) -> bool:
    """Whether an entity is written as IOBES writes it."""
    written = "".join(tag.prefix for tag in tags)
    return written == ("S" if len(tags) == 1 else "B" + "I" * (len(tags) - 2) + "E")

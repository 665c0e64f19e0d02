import random
import warnings

import pytest
from seqeval import scheme as schemes
from seqeval.metrics.sequence_labeling import get_entities

from tfmt.data.entities import find_spelling, resemble_entities, settle

KINDS = ("PER", "ORG", "B-LOC")  # a type may hold the delimiter


def draw_sentences(generator, count=60):
    """Sentences as (length, entities), an entity being (type, first, last)."""
    sentences = []
    for _ in range(count):
        place, entities = generator.randrange(3), []
        while place < 12 and generator.random() < 0.7:
            last = place + generator.choice((0, 0, 1, 2))
            entities.append((generator.choice(KINDS), place, last))
            place = last + 1 + generator.choice((0, 0, 1, 3))
        sentences.append((place + 1, entities))
    return sentences


def write(length, entities, scheme):
    """The tags of a sentence, written out by the definition of each scheme."""
    tags = ["O"] * length
    for number, (kind, first, last) in enumerate(entities):
        after_own = number and entities[number - 1][0] == kind and entities[number - 1][2] == first - 1
        before_own = number + 1 < len(entities) and entities[number + 1][:2] == (kind, last + 1)
        letters = ["I"] * (last - first + 1)
        if scheme == "IOB2" or (scheme == "IOB1" and after_own):
            letters[0] = "B"
        elif scheme == "IOE2" or (scheme == "IOE1" and before_own):
            letters[-1] = "E"
        elif scheme in ("IOBES", "BILOU"):
            letters[0], letters[-1] = "B", "EL"[scheme == "BILOU"]
            if first == last:
                letters[0] = "SU"[scheme == "BILOU"]
        tags[first : last + 1] = [f"{letter}-{kind}" for letter in letters]
    return tags


def settled(sentences):
    found = settle(sentences, find_spelling({tag for tags in sentences for tag in tags}))
    return found.tags, found.notes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"])
def test_every_scheme_gives_its_entities(scheme, seed):
    sentences = draw_sentences(random.Random(seed))
    tags, notes = settled([write(*sentence, scheme) for sentence in sentences])
    assert tags == [write(*sentence, "IOB2") for sentence in sentences]
    assert [get_entities(sentence) for sentence in tags] == [entities for _, entities in sentences]
    assert notes == {"scheme": scheme, "entities": sum(len(e) for _, e in sentences), "irregular": 0}


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("letters", ["BI", "IE", "BIES", "I"])
def test_any_tags_give_the_entities_of_seqeval(letters, suffix):
    generator = random.Random(letters)
    names = [f"{kind}-{c}" if suffix else f"{c}-{kind}" for c in letters for kind in ("PER", "LOC")]
    sentences = [generator.choices([*names, "O", "O"], k=generator.randrange(1, 9)) for _ in range(300)]
    tags, notes = settled(sentences)
    for before, after in zip(sentences, tags, strict=True):
        assert get_entities(after) == get_entities(before, suffix=suffix)
        # Valid IOB2: seqeval's strict reading finds the same.
        strict = schemes.Entities([after], schemes.IOB2).entities[0]
        assert [(e.tag, e.start, e.end - 1) for e in strict] == get_entities(after)
    assert notes["entities"] == sum(len(get_entities(sentence)) for sentence in tags)


@pytest.mark.parametrize(
    ("scheme", "letters", "swap"), [(schemes.IOBES, "BIES", {}), (schemes.BILOU, "BILU", {"L": "E", "U": "S"})]
)
def test_irregular_entities_are_those_that_the_scheme_does_not_read(scheme, letters, swap):
    generator = random.Random(5)
    names = [f"{c}-{kind}" for c in letters for kind in ("PER", "LOC")]
    sentences = [generator.choices([*names, "O"], k=6) for _ in range(400)]
    _, notes = settled(sentences)
    all_found = strictly = 0
    for tags in sentences:
        found = get_entities([swap.get(tag[0], tag[0]) + tag[1:] for tag in tags])
        strict = {(e.tag, e.start, e.end - 1) for e in schemes.Entities([tags], scheme).entities[0]}
        all_found += len(found)
        strictly += len(strict & set(found))
    assert notes == {"scheme": scheme.__name__, "entities": all_found, "irregular": all_found - strictly}


@pytest.mark.parametrize(
    ("tags", "scheme", "irregular", "expected"),
    [
        ("I-A I-A O", "IOB1", 0, "B-A I-A O"),
        ("I-A B-A I-A", "IOB1", 0, "B-A B-A I-A"),
        ("I-A I-B B-B", "IOB1", 0, "B-A B-B B-B"),
        ("I-A O I-A O B-A", "IOB1", 1, "B-A O B-A O B-A"),
        ("I-A O B-A O I-B O B-B I-B", "IOB2", 2, "B-A O B-A O B-B O B-B I-B"),  # as many: IOB2
        ("B-A I-A O B-A", "IOB2", 0, "B-A I-A O B-A"),
        ("B-A O I-A O B-A", "IOB2", 1, "B-A O B-A O B-A"),
        ("B-A I-B O B-B", "IOB2", 1, "B-A B-B O B-B"),
        ("E-A O I-A O E-B", "IOE2", 1, "B-A O B-A O B-B"),
        ("I-A O I-A O E-B", "IOE1", 1, "B-A O B-A O B-B"),
        ("O O B-A", "IOB2", 0, "O O B-A"),
    ],
)
def test_the_majority_decides(tags, scheme, irregular, expected):
    converted, notes = settled([tags.split()])
    assert converted == [expected.split()]
    assert (notes["scheme"], notes["irregular"]) == (scheme, irregular)


def test_sentences_do_not_continue_each_other():
    assert settled([["I-A", "O"], ["I-A"]])[0] == [["B-A", "O"], ["B-A"]]
    assert settled([["B-A", "O"], ["I-A"]])[1]["irregular"] == 1
    assert settled([["O", "E-A"], ["I-A"]])[1] == {"scheme": "IOE2", "entities": 2, "irregular": 1}


@pytest.mark.parametrize(
    ("tags", "form", "outside"),
    [
        ("O B-A I-A", "prefix", "O"),
        ("0 B-A I-A", "prefix", "0"),
        ("O 0 B-A", "prefix", "O 0"),
        ("O I-O I-PER B-PER", "prefix", "O I-O"),
        ("O I-O B-O I-PER", "prefix", "O"),  # B-O: a type of this name
        ("O I-O I-P B-L", "prefix", "O"),  # types of one letter, of which O may be one
        ("O A-B A-I", "suffix", "O"),
        ("O O-I PER-B PER-I", "suffix", "O O-I"),
        ("O B-I I-B", "prefix", "O"),
        ("B-A I-A", "prefix", ""),
        ("O B I", "untyped", "O"),
        ("0 I", "untyped", "0"),
        ("O B I E S", "untyped", "O"),
    ],
)
def test_spellings(tags, form, outside):
    assert find_spelling(tags.split()) == (form, frozenset(outside.split()))


@pytest.mark.parametrize(
    "tags", ["O", "B I", "O B-A X", "O B- I-", "O S", "0 1", "NN VB O", "O B-A A-I", "", "O B B-A"]
)
def test_what_is_no_spelling(tags):
    assert find_spelling(tags.split()) is None


def test_letters_of_two_schemes_are_none():
    tags = [["B-A", "E-A", "O", "U-A"]]
    assert settle(tags, find_spelling({*tags[0]})) is None


@pytest.mark.parametrize(
    ("tags", "expected"),
    [("B-A I-A", True), ("b-per o", True), ("B_PER O", True), ("PER.B O", True), ("(A* * *)", True), ("B M E S", True),
     ("NN VB O", False), ("B-side NN VB", False), ("S-1 W-2", False), ("O", False), ("", False), ("X B", False)],
)  # fmt: skip
def test_what_looks_like_entities(tags, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resemble_entities(tags.split()) is expected

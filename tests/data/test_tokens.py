import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tfmt.data import tokens
from tfmt.data.cache import load_arrays, store_arrays
from tfmt.data.examples import Examples
from tfmt.data.tokens import tokenize
from tfmt.files import cache_folder

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the film play ##ing ##ed is a good bad " + '" . ,'
PAIRS = Examples(
    (["The film is good .", "Playing", "a " * 30], ["a film", 'Played " bad " .', "the " * 5]),
    np.array([1, 0, 1], np.int32),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


def make_tokenizer(folder):
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
    return BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))


class Refuses:
    """Stands for a tokenizer that must not be asked again."""

    pad_token_id = 0


def rows(split):
    return [split.ids[a:b].tolist() for a, b in zip(split.offsets, split.offsets[1:], strict=False)]


@pytest.mark.parametrize("columns", [1, 2])
def test_ids_are_the_tokenizers_own(tokenizer, columns, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 2)
    examples = dataclasses.replace(PAIRS, texts=PAIRS.texts[:columns])
    split = tokenize(examples, tokenizer, 16, "digest")
    expected = tokenizer(*examples.texts, truncation="longest_first", max_length=16)
    assert rows(split) == expected["input_ids"]
    types = [[0] * first + [1] * (n - first) for first, n in zip(split.first_lengths, split.lengths, strict=True)]
    assert types == expected["token_type_ids"]
    assert split.lengths.tolist()[2] == 16
    assert split.labels is examples.labels
    assert (split.ids.dtype, split.offsets.dtype, split.first_lengths.dtype) == (np.int32, np.int64, np.int32)


def test_truncation_takes_from_the_longer_text(tokenizer):
    split = tokenize(PAIRS, tokenizer, 16, "digest")
    # 13 tokens for two texts of 30 and 5: the second one stays whole.
    assert split.first_lengths[2] == 16 - 5 - 1


def test_the_second_time_comes_from_the_cache(tokenizer):
    split = tokenize(PAIRS, tokenizer, 16, "digest")
    again = tokenize(PAIRS, Refuses(), 16, "digest")
    assert rows(again) == rows(split)
    relabelled = tokenize(dataclasses.replace(PAIRS, labels=np.zeros(3, np.int32)), Refuses(), 16, "digest")
    assert relabelled.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("change", ["text", "tokenizer", "length", "version"])
def test_everything_that_matters_is_in_the_key(tokenizer, change, monkeypatch):
    tokenize(PAIRS, tokenizer, 16, "digest")
    texts = (["x", *PAIRS.texts[0][1:]], PAIRS.texts[1]) if change == "text" else PAIRS.texts
    if change == "version":
        monkeypatch.setattr(tokens, "_VERSION", 0)
    with pytest.raises(TypeError, match="not callable"):
        tokenize(
            dataclasses.replace(PAIRS, texts=texts),
            Refuses(),
            15 if change == "length" else 16,
            "other" if change == "tokenizer" else "digest",
        )


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_cache_is_made_again(tokenizer, damage):
    split = tokenize(PAIRS, tokenizer, 16, "digest")
    (file,) = cache_folder().glob("*.safetensors")
    content = bytearray(file.read_bytes())
    place = content.index(split.ids.tobytes())
    content[place] ^= 1
    file.write_bytes({"cut": content[:300], "flipped": content, "empty": b"", "text": b"hello"}[damage])
    assert rows(tokenize(PAIRS, tokenizer, 16, "digest")) == rows(split)
    assert rows(tokenize(PAIRS, Refuses(), 16, "digest")) == rows(split)


def test_no_cache_where_nothing_can_be_written(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "file"))
    assert len(tokenize(PAIRS, tokenizer, 16, "digest")) == 3


def test_nothing_pickled_is_read():
    path = cache_folder() / "tokens.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        np.savez(file, ids=np.array([{"a": 1}], object))
    assert load_arrays("tokens") is None


def test_two_processes_may_write_one_cache():
    code = (
        "import numpy as np; from tfmt.data.cache import store_arrays\n"
        "for _ in range(30): store_arrays('shared', {'a': np.arange(300_000)})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        arrays = load_arrays("shared")
        if arrays is not None:
            reads += 1
            np.testing.assert_array_equal(arrays["a"], np.arange(300_000))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads
    assert [path.name for path in cache_folder().iterdir()] == ["shared.safetensors"]


def test_arrays_come_back():
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.zeros(0)}
    store_arrays("key", arrays)
    loaded = load_arrays("key")
    assert {name: (value.dtype, value.tolist()) for name, value in loaded.items()} == {
        "a": (np.int32, [0, 1, 2]),
        "b": (np.float64, []),
    }
    assert load_arrays("other") is None


def test_labels_sit_on_first_tokens(tokenizer):
    # "playing" is two tokens, the zero-width space none, and the third sentence is cut at 8.
    words = ["playing", "film", "a", "\u200b", "bad", *["played"] * 4]
    examples = Examples((words,), np.arange(9, dtype=np.int32), np.array([2, 3, 4]))
    split = tokenize(examples, tokenizer, 8, "digest")
    cls, sep, play, ing, ed, film, a, bad = tokenizer.convert_tokens_to_ids(
        ["[CLS]", "[SEP]", "play", "##ing", "##ed", "film", "a", "bad"]
    )
    assert rows(split) == [[cls, play, ing, film, sep], [cls, a, bad, sep], [cls, *[play, ed] * 3, sep]]
    assert split.word_positions.tolist() == [1, 3, 1, -2, 2, 1, 3, 5, -1]
    assert (split.words_cut_off, split.words_without_token) == (1, 1)
    none = -100
    assert split.labels.tolist() == [
        *[none, 0, none, 1, none],
        *[none, 2, 4, none],
        *[none, 5, none, 6, none, 7, none, none],
    ]
    again = tokenize(examples, Refuses(), 8, "digest")
    assert again.labels.tolist() == split.labels.tolist()
    unlabelled = tokenize(dataclasses.replace(examples, labels=None), Refuses(), 8, "digest")
    assert unlabelled.labels is None


@pytest.mark.parametrize("length", [3, 4, 7, 8, 64])
def test_words_cut_off_and_words_without_a_token_are_two_counts(tokenizer, length):
    """U+200B and U+200D are format characters and U+FE0F is a mark: BERT's cleaning leaves nothing of such words."""
    vanishing = ["\u200b", "\u200d", "\ufe0f", "\ufe0f\u200d"]
    generator = np.random.default_rng(length)
    words = generator.choice(["playing", "film", "a", *vanishing], 300).tolist()
    words[:4] = vanishing  # a sentence of nothing else
    lengths = np.array([4, *[8] * 37])
    split = tokenize(Examples((words,), np.zeros(300, np.int32), lengths), tokenizer, length, "digest")
    pieces = [len(tokenizer.tokenize(word)) for word in words]
    expected, place = [], 0
    for count in lengths.tolist():
        position = 1
        for number in pieces[place : place + count]:
            expected.append(-2 if not number else position if position < length - 1 else -1)
            position += number
        place += count
    assert split.word_positions.tolist() == expected
    assert split.words_without_token == sum(word in vanishing for word in words)
    assert split.words_cut_off == expected.count(-1)


def test_the_terminal_stays_quiet(tokenizer, capfd):
    tokenize(PAIRS, tokenizer, 16, "digest", "train")
    assert capfd.readouterr() == ("", "")

import numpy as np

from tfmt.data.examples import Dataset, Examples
from tfmt.tasks import find_task


def sentences():
    return Examples((["a", "b", "c", "d", "e", "f"],), np.arange(6, dtype=np.int32), np.array([1, 3, 2]))


def test_a_limit_takes_the_same_examples_from_everywhere():
    examples = Examples(([str(i) for i in range(1000)],), np.repeat([0, 1], 500).astype(np.int32))
    some = examples.limit(100)
    assert len(some) == 100
    assert some.texts == examples.limit(100).texts
    assert 30 < some.labels.sum() < 70  # The source is sorted by class; the limit is not.
    numbers = [int(text) for text in some.texts[0]]
    assert numbers == sorted(numbers)
    assert examples.limit(0) is examples.limit(1000) is examples


def test_whole_sentences_are_taken():
    taken = sentences().take(np.array([2, 0]))
    assert taken.texts == (["e", "f", "a"],)
    assert taken.labels.tolist() == [4, 5, 0]
    assert taken.sentence_lengths.tolist() == [2, 1]
    assert len(taken) == 2


def test_the_digest_keeps_texts_and_sentences_apart():
    labels = np.zeros(2, np.int32)
    assert Examples((["ab", "c"],), labels).text_digest != Examples((["a", "bc"],), labels).text_digest
    words = ["a", "b", "c"]
    three = np.zeros(3, np.int32)
    one = Examples((words,), three, np.array([1, 2]))
    assert one.text_digest != Examples((words,), three, np.array([2, 1])).text_digest


def test_limits_of_a_dataset():
    task = find_task("rotten_tomatoes")
    split = Examples((list("abcdef"),), np.zeros(6, np.int32))
    dataset = Dataset(task, {"train": split, "validation": split}, {})
    limited = dataset.limit(4, 2)
    assert {name: len(examples) for name, examples in limited.splits.items()} == {"train": 4, "validation": 2}
    assert limited.digest != dataset.digest

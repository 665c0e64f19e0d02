"""tokenize: the arrays that transformers' own tokenizer makes of these texts, and clear words for what is no text."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from tfmt import tokenize
from tfmt.errors import RequestError

TEXTS = ["the film ends well", "dull", "a very very bright story not a dull plot the actor"]
PAIRS = ["good", "the plot ends the plot ends the plot ends", "bad"]


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("max_length", [8, 64])
@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_arrays_are_those_of_transformers(toy_bert, pairs, max_length, kind):
    model = SimpleNamespace(name_or_path=str(toy_bert))
    found = tokenize(model, kind(TEXTS), None if pairs is None else kind(pairs), max_length=max_length)
    theirs = AutoTokenizer.from_pretrained(toy_bert)
    expected = theirs(TEXTS, pairs, padding=True, truncation=True, max_length=max_length, return_tensors="np")
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"texts": "one text"}, r"texts must be a list of texts, \[text\]"), ({"texts": []}, "at least one text"),
        ({"texts": ["a", None]}, r"texts\[1\] = None"), ({"texts": ["a"], "pairs": ["b", "c"]}, "1 texts, 2 pairs"),
        ({"texts": ["a"], "pairs": [float("nan")]}, r"pairs\[0\] = nan"),
        ({"texts": ["a"], "max_length": 65}, "at most 64"), ({"texts": ["a"], "max_length": 4}, "at least 8"),
        ({"texts": ["a"], "model": SimpleNamespace()}, r"tfmt\.load_bert"),
        ({"texts": ["a"], "model": "/nowhere"}, "no such folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(toy_bert, arguments, words):
    with pytest.raises(RequestError, match=words):
        tokenize(**{"model": str(toy_bert)} | arguments)

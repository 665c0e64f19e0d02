"""Messages of errors fit a terminal, whatever they quote."""

import pytest

from tfmt.errors import RequestError, RunError


@pytest.mark.parametrize("kind", [RequestError, RunError])
def test_a_message_is_one_line_of_bounded_length(kind):
    assert str(kind("a\nb\tc\x1b[31m\u2028\ud800 caf\u00e9")) == r"a\nb\tc\x1b[31m\u2028\ud800 " + "caf\u00e9"
    assert str(kind("x" * 1000)) == "x" * 1000
    long = str(kind("model.json: not a size: " + "9" * 50_000 + "; repair it"))
    assert len(long) < 1100
    assert long.startswith("model.json: not a size: 999")
    assert long.endswith("9; repair it")
    assert "[49,035 characters left out]" in long

"""The two ways a command ends badly, and nothing else.

Every message is one line that names the culprit (file, line, flag) and the remedy.
"""

import re

_LONGEST = 1000
_HEAD = 600  # of a longer message: who is the culprit stands at its beginning, the remedy at its end


def one_line(text: str) -> str:
    """A message as a terminal can show it, whatever a file or a flag that it quotes holds.

    Line breaks and other control characters are written as escapes, and the middle of what is very long is left out.
    """
    shown = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], text)
    if len(shown) <= _LONGEST:
        return shown
    tail = _LONGEST - _HEAD
    return f"{shown[:_HEAD]} [{len(shown) - _LONGEST:,} characters left out] {shown[-tail:]}"


class RequestError(ValueError):
    """The request was wrong: a flag, a file, a label, a model. Commands exit with status 2.

    Example:
      >>> import tfmt
      >>> tfmt.RunSpec.make(model="demo", task="mrpc", mode="outliers")
      Traceback (most recent call last):
      ...
      tfmt.errors.RequestError: mode=outliers needs mask_size, the number of weights per LayerNorm
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class RunError(RuntimeError):
    """The request was fine and something broke while running. Commands exit with status 1."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class SurroundingsError(RunError):
    """What surrounds a run ended it (disk, permission, memory), and not what it computes: it has no result.

    Nothing is recorded, and the same command tries the run again.
    """


class RequestWarning(UserWarning):
    """What was asked for can be done, but is likely not what was meant."""

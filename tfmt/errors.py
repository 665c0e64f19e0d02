"""The two ways a command ends badly, and nothing else.

Every message is one line that names the culprit (file, line, flag) and the remedy.
"""


class RequestError(ValueError):
    """The request was wrong: a flag, a file, a label, a model. Commands exit with status 2."""


class RunError(RuntimeError):
    """The request was fine and something broke while running. Commands exit with status 1."""


class RequestWarning(UserWarning):
    """What was asked for can be done, but is likely not what was meant."""

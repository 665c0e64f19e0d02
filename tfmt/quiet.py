"""Keeps the terminal free of TensorFlow's chatter; errors stay visible."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from tfmt.errors import RequestWarning

_asked = 0  # the verbosity of the command; a library call is quiet


def set_verbosity(verbosity: int) -> None:
    """Sets how much the libraries may say, unless the user's environment does; call it before TensorFlow is imported.

    Args:
      verbosity: below 1 only errors, 1 also warnings and TensorFlow's information.
    """
    global _asked
    _asked = verbosity
    # The commands need transformers' TensorFlow side alone; looking for PyTorch takes seconds where it is installed.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("USE_JAX", "0")
    if verbosity >= 1:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1" if not sys.stderr.isatty() else "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are told in one line if they fail
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Not enough free disk space")  # of the hub's client; an error follows
    warnings.filterwarnings("ignore", message="IProgress not found")  # in a notebook without ipywidgets


@contextmanager
def plain_warnings(program: str) -> Iterator[None]:
    """Shows tfmt's own warnings as one line on stderr, each once, without the place in the code."""
    with warnings.catch_warnings():
        shown_by_python = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, RequestWarning):
                print(f"{program}: warning: {message}", file=sys.stderr)
            else:
                shown_by_python(message, category, *place, **more)

        warnings.showwarning = show
        warnings.filterwarnings("default", category=RequestWarning)  # shown, even where warnings are errors
        yield


@contextmanager
def hushed(verbosity: int) -> Iterator[None]:
    """Holds back what native code prints while TensorFlow is imported or looks for devices.

    Its first lines come before any of its settings are read. If the block raises an error, they are shown after all.
    Nothing is held back where the user's TF_CPP_MIN_LOG_LEVEL asks for warnings or more.
    """
    if verbosity >= 1 or os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(saved, 2)
            held.seek(0)
            with suppress(OSError):  # a terminal that is gone
                os.write(2, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def silent() -> Iterator[None]:
    """Drops what libraries say in a block (notices, log lines, bars), unless the command's verbosity is 1 or more.

    Errors go through, and whoever catches them says what they mean.
    """
    if _asked >= 1:
        yield
        return
    raised = None
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with hushed(0), redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                yield
            except BaseException as error:  # hushed would show all that was said before it
                raised = error
    finally:
        logger.setLevel(level)
    if raised is not None:
        raise raised


def import_tensorflow(verbosity: int) -> None:
    """Imports TensorFlow and transformers without their greetings."""
    with hushed(verbosity):
        import tensorflow

        tensorflow.config.list_physical_devices()
        import tf_keras
        import transformers.utils.import_utils as installed

        # transformers' metrics, which nothing here calls, take a second to import scikit-learn where it is installed.
        installed._sklearn_available = False
        del tf_keras
    if verbosity < 1:
        tensorflow.get_logger().setLevel(logging.ERROR)  # in a notebook TensorFlow sets its own logger to INFO

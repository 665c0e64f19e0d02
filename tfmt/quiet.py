"""Keeps the terminal free of TensorFlow's chatter; errors stay visible."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import io
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
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
        show_first_import()
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
    with _holding(lambda line: False):
        yield


# Whoever has it holds file 2, which is the whole process's: what other threads write meanwhile is held as well.
_holder = threading.RLock()


@contextmanager
def _holding(shows: Callable[[bytes], object]) -> Iterator[None]:
    """Holds back what is written to file 2, by native code too, and shows afterwards the lines that are to be seen.

    If the block raises an error all of them are. Where nothing can be held, or another thread does, nothing is done.

    Args:
      shows: picks the lines.
    """
    if not _holder.acquire(blocking=False):
        yield
        return
    try:
        _flush()
        try:
            held = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        except OSError:  # no folder for temporary files
            yield
            return
        with held:
            try:
                saved = os.dup(2)
            except OSError:  # no stderr at all
                yield
                return
            os.dup2(held.fileno(), 2)
            failed = False
            try:
                yield
            except Exception:
                failed = True
                raise
            finally:
                _flush()
                os.dup2(saved, 2)
                os.close(saved)
                held.seek(0)
                with suppress(OSError):  # a terminal that is gone
                    for line in held:
                        if failed or shows(line):
                            os.write(2, line)
    finally:
        _holder.release()


def _flush() -> None:
    with suppress(AttributeError, ValueError, OSError):  # none, closed, or gone
        sys.stderr.flush()


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


# ---- in a user's own Python -----------------------------------------------------------------------------------------

# A line of TensorFlow's native log, whose levels do not tell what matters: what is no matter comes as an error, too.
_NATIVE_LINE = re.compile(rb"(?:[IWEF]\d{4} |\d{4}-\d\d-\d\d \d\d:.*: [IWE] |WARNING: All log messages before absl::)")


def hush_first_import() -> None:
    """Has the first `import tensorflow` of this process come without greetings.

    Nothing is done where TensorFlow is there already, or where TF_CPP_MIN_LOG_LEVEL asks for its information.
    """
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietFinder())


def _wants_words() -> bool:
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2") < "2"


class _QuietFinder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as everybody else does, and has it executed quietly, once."""

    _asking = False

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of TensorFlow; None for all else."""
        if name != "tensorflow" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            del spec.loader.exec_module  # type: ignore[union-attr]  # the class's own is there again
            show_first_import()
            if _wants_words():
                execute(module)
                return
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            import_bars()
            logger = logging.getLogger("tensorflow")
            before = logger.level
            with without_greetings():
                execute(module)
            logger.setLevel(before or logging.WARNING)  # in a notebook TensorFlow sets it to INFO

        spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


def import_bars() -> None:
    """Imports what transformers shows progress with, without its advice to install widgets for notebooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401


def show_first_import() -> None:
    """Undoes `hush_first_import`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _QuietFinder)]


@contextmanager
def without_greetings() -> Iterator[None]:
    """Holds stderr back and shows it afterwards, without the lines of TensorFlow's native log unless the block raises.

    Others may write meanwhile, so nothing else may be lost.
    """
    with _holding(lambda line: not _NATIVE_LINE.match(line)):
        yield


@functools.cache
def find_devices() -> None:
    """Has TensorFlow look for devices, without its errors about a driver that a machine without GPUs cannot have."""
    import tensorflow

    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")
    if asked or Path("/dev/nvidiactl").exists() or _wants_words():
        return
    with without_greetings():
        tensorflow.config.list_physical_devices()


@contextmanager
def without_advice() -> Iterator[None]:
    """Keeps transformers from advising PyTorch, which nobody can follow who uses its TensorFlow models on purpose."""
    logger = logging.getLogger("transformers.modeling_tf_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

"""tfmt fine-tunes exactly the part of BERT you mean, and proves it.

The public calls are imported when they are first used, so that `import tfmt` starts at once.
"""

import os
import platform
from typing import TYPE_CHECKING, Any

from tfmt.quiet import hush_first_import
from tfmt.version import __version__ as __version__

# Hugging Face's TF models are built on Keras 2. This has to be set before anything imports TensorFlow.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# oneDNN multiplies batches of small matrices, as attention does, three times as fast as TensorFlow's own kernel on CPUs
# for which TensorFlow leaves it off (those without VNNI instructions).
if platform.machine() in {"x86_64", "AMD64"}:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

hush_first_import()

if TYPE_CHECKING:
    from tfmt.bert.models import load_bert
    from tfmt.data.model_inputs import tokenize
    from tfmt.errors import RequestError, RunError
    from tfmt.runs.fine_tune import fine_tune
    from tfmt.runs.records import Record, read_runs
    from tfmt.selection.gradient_mask import GradientMask
    from tfmt.selection.selection import Selection, select
    from tfmt.spec import RunSpec
    from tfmt.tuned.load import load_tuned

_PUBLIC = {
    "GradientMask": "tfmt.selection.gradient_mask",
    "Record": "tfmt.runs.records",
    "RequestError": "tfmt.errors",
    "RunError": "tfmt.errors",
    "RunSpec": "tfmt.spec",
    "Selection": "tfmt.selection.selection",
    "fine_tune": "tfmt.runs.fine_tune",
    "load_bert": "tfmt.bert.models",
    "load_tuned": "tfmt.tuned.load",
    "read_runs": "tfmt.runs.records",
    "select": "tfmt.selection.selection",
    "tokenize": "tfmt.data.model_inputs",
}
__all__ = [
    "GradientMask",
    "Record",
    "RequestError",
    "RunError",
    "RunSpec",
    "Selection",
    "fine_tune",
    "load_bert",
    "load_tuned",
    "read_runs",
    "select",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfmt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

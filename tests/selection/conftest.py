"""Every test starts from the same seed and leaves the precision as it was; `alone` can be imported by its name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tf_keras as keras

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _float32_and_a_seed() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")

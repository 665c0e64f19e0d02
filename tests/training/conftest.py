"""Whole runs for the tests of training: the settings of a small one, and a run that dies on the way."""

import pytest

from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec


@pytest.fixture(scope="module")
def small(toy_bert, toy_glue):
    """Settings of a run that takes a second or two once its bench is warm."""
    return {
        "model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": 2,
        "learning_rate": 1e-2,
    }  # fmt: skip


class Killed(BaseException):
    """Stands for a process that dies."""


@pytest.fixture(scope="module")
def bench(settings, tmp_path_factory):
    """A workbench for the runs of a test file, whose own fixture `settings` says of what."""
    return make_bench(prepare(RunSpec.make(**settings), tmp_path_factory.mktemp("bench")))


@pytest.fixture
def prepared(settings, tmp_path):
    """Prepares a run of the test file's settings, below a folder of this name."""
    return lambda name, **changes: prepare(RunSpec.make(**settings | changes), tmp_path / name)


@pytest.fixture
def die_before_write():
    """Executes a run whose process dies before its n-th write, counted from 0; the events' file is none of them."""

    def die(request, bench, writes):
        left = iter(range(writes + 1))

        def before_write():
            if next(left, None) is None:
                raise Killed

        with pytest.raises(Killed):
            execute(request, bench, started=0.0, quiet=True, before_write=before_write)
        assert not (request.folder / "record.json").exists()

    return die


@pytest.fixture(scope="session")
def same():
    """What must be the same in two runs of one spec, and the bytes of what they tuned."""

    def told(request, record):
        epochs = [(epoch.train_loss, epoch.metrics) for epoch in record.result.epochs]
        stored = request.folder / "tuned.safetensors"
        return (
            epochs, record.result.predicted, record.result.best_epoch, record.proof, record.change, record.fisher,
            record.cost.tokens, stored.read_bytes() if stored.exists() else None,
        )  # fmt: skip

    return told

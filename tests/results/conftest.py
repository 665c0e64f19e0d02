"""Hand-made runs: a `Record` in a folder of its own for each, and what `read_runs` makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tfmt.runs.records import RECORD_FILE, Record, read_runs
from tfmt.spec import ARITHMETIC, RunSpec

SCORE_NAMES = {"cola": "matthews_correlation", "mrpc": "f1", "stsb": "pearson_spearman", "conll2003_ner": "f1"}
TUNED_PERCENT = {"full": 100.0, "frozen": 0.0, "layernorm": 0.0336713, "random": 0.0336713, "bitfit": 0.094}


def make_record(
    score: float | None = 0.5,
    *,
    last: float | None = None,
    status: str = "completed",
    collapsed: bool = False,
    frozen_changed: int = 0,
    change: dict[str, dict[str, float]] | None = None,
    origin: dict[str, Any] | None = None,
    epochs_kept: int = 1,
    tuned: int = 36864,
    **spec: Any,
) -> Record:
    """A record of a run; what is not said is ordinary."""
    settings = {"model": "bert-base-uncased", "task": "mrpc", "mode": "full", "learning_rate": 1e-3}
    settings |= {"batching": "random", "keep": "scores"} | spec
    run = RunSpec.make(**settings)
    told = {"tfmt": "0.1.0", "arithmetic": ARITHMETIC, "model_sha256": "a" * 64, "data_sha256": run.task.ljust(64, "0")}
    told |= origin or {}
    name = SCORE_NAMES.get(run.task, "accuracy")
    ended = status == "completed"
    epochs = [
        {"epoch": i + 1, "train_loss": 0.5, "metrics": {"validation": {name: score}}, "seconds": 1.0}
        for i in range(epochs_kept)
    ]
    return Record.model_validate(
        {
            "schema": 1,
            "run_id": run.run_id(**{key: str(value) for key, value in told.items()}, fisher_from=str(run.fisher_from)),
            "status": status,
            "error": None if ended else f"the run {status}",
            "spec": run.model_dump(),
            "parameters": {
                "total": 109483778,
                "tuned": tuned,
                "head": 1538,
                "trainable": tuned + 1538,
                "tuned_percent": TUNED_PERCENT.get(run.mode, 1.25),
            },
            "result": {
                "score_name": name,
                "score_last": score if last is None else last,
                "score_best": score,
                "best_epoch": 1,
                "collapsed": collapsed,
                "epochs": epochs,
                "examples": {"train": 3668, "validation": 408},
                "predicted": {"validation": {"0": 200, "1": 208}},
            }
            if ended
            else None,
            "cost": {
                "setup_seconds": 1.0,
                "train_seconds": 2.0,
                "eval_seconds": 3.0,
                "steps": 10,
                "tokens": 100,
                "padded_tokens": 120,
                "peak_rss_mb": 1000.0,
                "optimizer_bytes": 1000,
                "replicas": 1,
                "threads": 2,
                "devices": ["CPU:0"],
                "jit_compile": False,
                "resumed": 0,
            },
            "proof": {
                "selected_changed": 10,
                "frozen_changed": frozen_changed,
                "frozen_sha256_before": "b" * 64,
                "frozen_sha256_after": "b" * 64,
            },
            "change": change,
            "origin": {
                "packages": {"tensorflow": "2.21.0"},
                "python": "3.11.9",
                "git_commit": None,
                "git_dirty": None,
                "data_notes": {},
                "started": "2025-01-01T00:00:00+00:00",
                "finished": "2025-01-01T00:01:00+00:00",
                **told,
            },
        }
    )


@pytest.fixture
def add_run(tmp_path: Path) -> Callable[..., Record]:
    """Writes a run's record below `tmp_path/runs`."""

    def add(score: float | None = 0.5, **keywords: Any) -> Record:
        record = make_record(score, **keywords)
        folder = tmp_path / "runs" / record.run_id
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
        return record

    return add


@pytest.fixture
def add_seeds(add_run: Callable[..., Record]) -> Callable[..., None]:
    """Writes one run for each score, with seeds 0, 1, ..."""

    def add(scores: list[float], **keywords: Any) -> None:
        for seed, score in enumerate(scores):
            add_run(score, seed=seed, **keywords)

    return add


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], pd.DataFrame]:
    """Reads what was written so far."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return lambda: read_runs(tmp_path / "runs")

"""`--frozen_prefix=cached`: the blocks below all that trains run once, without dropout, and nothing else changes."""

import time

import numpy as np
import pytest
import transformers

from tfmt import train
from tfmt.errors import RequestError
from tfmt.files import UnwritableError
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune, prefix, workbench
from tfmt.training.prefix import PrefixStates, count_prefix_blocks


def copy_without_dropout(toy_bert, folder):
    settings = (toy_bert / "config.json").read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0')
    folder.mkdir()
    for file in toy_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(settings)
    return folder


def spec_of(model, data, **changes):
    settings = {"model": str(model), "data_dir": str(data), "task": "mrpc", "mode": "layernorm", "layers": "1",
                "epochs": 2, "max_length": 32, "learning_rate": 1e-2, "frozen_prefix": "cached"}  # fmt: skip
    return RunSpec.make(**settings | changes)


def run(spec, folder, bench=None):
    request = prepare(spec, folder)
    bench = bench or make_bench(request)
    record = execute(request, bench, started=time.perf_counter(), quiet=True)
    tuned = request.folder / "tuned.safetensors"
    return record, bench, tuned.read_bytes() if tuned.exists() else b""


def losses(record):
    return [epoch.train_loss for epoch in record.result.epochs]


@pytest.mark.parametrize("mode", [
    {}, {"mode": "frozen", "layers": "all"}, {"mode": "full"}, {"mode": "outliers", "mask_size": 3},
    {"batching": "fixed"}, {"replicas": 2},
])  # fmt: skip
def test_without_dropout_it_is_the_live_run(toy_bert, toy_glue, tmp_path, mode):
    model = copy_without_dropout(toy_bert, tmp_path / "bert")
    live, _, _ = run(spec_of(model, toy_glue, **mode, frozen_prefix="live"), tmp_path / "runs")
    cached, _, _ = run(spec_of(model, toy_glue, **mode), tmp_path / "runs")
    assert live.run_id != cached.run_id
    np.testing.assert_allclose(losses(cached), losses(live), atol=2e-6)
    for one, other in zip(live.result.epochs, cached.result.epochs, strict=True):
        assert one.metrics == other.metrics
    assert cached.proof.frozen_changed == 0
    # A key's bias has no gradient but rounding (softmax does not see it): which of its 16 weights move is chance.
    assert abs(cached.proof.selected_changed - live.proof.selected_changed) <= 16


@pytest.mark.parametrize(("precision", "close"), [("bfloat16", 0.02), ("float16", 2e-3)])
@pytest.mark.parametrize("mode", [{}, {"mode": "frozen", "layers": "all"}])
def test_half_precision_without_dropout_it_is_the_live_run(toy_bert, toy_glue, tmp_path, precision, close, mode):
    still = copy_without_dropout(toy_bert, tmp_path / "still")
    found = [
        losses(run(spec_of(still, toy_glue, precision=precision, **mode | {"frozen_prefix": kind}), tmp_path / kind)[0])
        for kind in ("live", "cached")
    ]
    assert found[1] == pytest.approx(found[0], abs=close)


def test_states_are_the_library_s_hidden_states(toy_bert, toy_glue, tmp_path):
    spec = spec_of(toy_bert, toy_glue)
    _, bench, _ = run(spec, tmp_path)
    start, states = bench._prefix
    assert start == 1
    library = transformers.TFBertModel(bench.model.config)
    library.build_in_name_scope()
    ours = bench.model.all_weights
    for variable in library.weights:
        variable.assign(ours[variable.name.split("/", 1)[1].split(":")[0]])
    split = bench.splits["validation"]
    for example in range(5):
        ids = split.ids[split.offsets[example] : split.offsets[example + 1]][None]
        kinds = (np.arange(ids.shape[1]) >= split.first_lengths[example]).astype(np.int32)[None]
        hidden = library(ids, token_type_ids=kinds, output_hidden_states=True, training=False).hidden_states[1]
        ours = states.take("validation", np.array([example]), ids.shape[1] + 3)
        np.testing.assert_allclose(ours[0, : ids.shape[1]], hidden[0], atol=1e-5)
        assert not ours[0, ids.shape[1] :].any()


@pytest.mark.parametrize("mode", [{}, {"mode": "frozen", "layers": "all"}])
def test_resumed_and_from_a_file_it_is_bit_for_bit_the_same(toy_bert, toy_glue, tmp_path, monkeypatch, mode):
    spec = spec_of(toy_bert, toy_glue, **mode)
    whole, _, weights = run(spec, tmp_path / "whole")
    from_file, bench, weights_from_file = run(
        spec_of(toy_bert, toy_glue, **mode, cache_limit_gb=0.0), tmp_path / "file"
    )
    assert not bench._prefix[1].in_memory
    assert from_file.run_id == whole.run_id  # where the states lay changes no number
    assert (losses(from_file), weights_from_file) == (losses(whole), weights)

    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    real, left = workbench.Workbench.train_step, iter(range(4))

    def train_step(self, batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(workbench.Workbench, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "resumed")
    monkeypatch.setattr(workbench.Workbench, "train_step", real)
    resumed, _, weights_resumed = run(spec, tmp_path / "resumed")
    assert resumed.cost.resumed == 1
    assert (losses(resumed), weights_resumed) == (losses(whole), weights)


def test_warm_runs_share_the_states(toy_bert, toy_glue, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        workbench, "PrefixStates", lambda *splits, **how: made.append(PrefixStates(*splits, **how)) or made[-1]
    )
    bench = None
    for seed in (0, 1):
        for mode in ({}, {"mode": "outliers", "mask_size": 2}):
            warm, bench, weights = run(spec_of(toy_bert, toy_glue, seed=seed, **mode), tmp_path / "warm", bench)
    assert len(made) == 1
    cold, _, cold_weights = run(spec_of(toy_bert, toy_glue, seed=1, mode="outliers", mask_size=2), tmp_path / "cold")
    assert (losses(cold), cold_weights) == (losses(warm), weights)
    run(spec_of(toy_bert, toy_glue, mode="frozen", layers="all"), tmp_path / "warm", bench)
    assert len(made) == 3


def test_only_where_blocks_lie_below(toy_bert, toy_glue, tmp_path, capsys):
    for settings in ({"mode": "full", "layers": "all"}, {"layers": "all"}, {"layers": "0"}, {"layers": "0-1"}):
        assert spec_of(toy_bert, toy_glue, **settings).frozen_prefix == "live"
    assert spec_of(toy_bert, toy_glue, mode="frozen", layers="all").frozen_prefix == "cached"
    flags = [f"--model={toy_bert}", f"--data_dir={toy_glue}", "--task=mrpc", "--mode=full", "--frozen_prefix=cached",
             f"--output_dir={tmp_path}"]  # fmt: skip
    assert train.main(flags) == 2
    assert "--frozen_prefix=cached means nothing for --mode=full" in capsys.readouterr().err
    with pytest.raises(RequestError, match="cache_limit_gb"):
        spec_of(toy_bert, toy_glue, cache_limit_gb=-1.0)


def test_blocks_below_a_selection(toy_bert, toy_glue, tmp_path):
    bench = make_bench(prepare(spec_of(toy_bert, toy_glue), tmp_path))
    bench.set_up(spec_of(toy_bert, toy_glue), 10)
    table = bench.selection.weights
    assert count_prefix_blocks(table, {"classifier/kernel"}, 2) == 2
    for weight in table:
        expected = {"pooler": 2, "classifier": 2}.get(weight.sublayer, weight.block or 0)
        assert count_prefix_blocks(table, {weight.path}, 2) == expected


def test_no_room_for_the_file_is_said(toy_bert, toy_glue, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix.os, "posix_fallocate", no_room)
    with pytest.raises(UnwritableError, match="disk is full"):
        run(spec_of(toy_bert, toy_glue, cache_limit_gb=0.0), tmp_path)


def test_token_tasks_too(toy_bert, tmp_path):
    lines = ["\n".join(f"{word} {'X' if word == 'film' else 'O'}" for word in text.split())
             for text in ("good film", "the plot ends", "a very dull film", "not bad") * 8]  # fmt: skip
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "validation"):
        (data / f"{name}.conll").write_text("\n\n".join(lines) + "\n")
    own = {"task": "custom", "data_dir": str(data), "task_type": "tokens", "text_columns": ("0",), "label_column": "1"}
    model = copy_without_dropout(toy_bert, tmp_path / "bert")
    for settings in ({}, {"mode": "frozen", "layers": "all"}):
        live, _, _ = run(spec_of(model, data, **own | settings, frozen_prefix="live"), tmp_path / "runs")
        cached, _, _ = run(spec_of(model, data, **own | settings), tmp_path / "runs")
        np.testing.assert_allclose(losses(cached), losses(live), atol=2e-6)
        assert read_record(tmp_path / "runs" / cached.run_id).spec.frozen_prefix == "cached"

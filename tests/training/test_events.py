"""TensorBoard's events, read back with TensorBoard's own code and set against the record."""

import json

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as ExperimentHandler
from tensorboard.plugins.hparams.list_session_groups import Handler as SessionsHandler
from tensorboard.util.tensor_util import make_ndarray

from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import events, fine_tune
from tfmt.training.events import Curve


@pytest.mark.parametrize(("per_epoch", "count"), [(1, 1), (7, 7), (50, 50), (51, 26), (229, 46), (24_543, 50)])
def test_an_epoch_has_some_points_whose_mean_is_the_epochs(per_epoch, count):
    losses = np.random.default_rng(0).random(2 * per_epoch)
    curve = Curve()
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss, per_epoch)
    steps, means, _ = map(np.array, zip(*curve.points, strict=True))
    assert len(steps) == 2 * count
    assert {per_epoch, 2 * per_epoch} <= set(steps)
    assert steps.tolist() == events._point_steps(2, per_epoch).tolist()
    np.testing.assert_allclose(means @ np.diff(steps, prepend=0), losses.sum())
    np.testing.assert_allclose(means[0], losses[: steps[0]].mean())


def read_scalars(folder):
    """{tag: {step: value}} as TensorBoard has it; a step that is there twice fails."""
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in read.PluginTagToContent("scalars"):
        points = read.Tensors(tag)
        found[tag] = {point.step: make_ndarray(point.tensor_proto).item() for point in points}
        assert len(found[tag]) == len(points), tag
        assert [point.wall_time for point in points] == sorted(point.wall_time for point in points)
    return found


def hparams_tab(folder):
    """What TensorBoard's HParams tab shows of a folder of runs: names of metrics, and parameters and metrics by run."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request = RequestContext(), context, ""
    experiment = ExperimentHandler(*request, api_pb2.GetExperimentRequest()).run()
    listed = SessionsHandler(*request, api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE], slice_size=100,
        col_params=[{"hparam": info.name} for info in experiment.hparam_infos],
    )).run()  # fmt: skip
    runs = {}
    for group in listed.session_groups:
        (session,) = group.sessions
        parameters = {name: MessageToDict(value) for name, value in group.hparams.items()}
        runs[session.name] = session.status, parameters, {m.name.tag: m.value for m in session.metric_values}
    return [metric.name.tag for metric in experiment.metric_infos], runs


def test_events_of_a_resumed_run_are_those_of_one_in_one_go(small, tmp_path, monkeypatch, die_before_write):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    spec = RunSpec.make(**small | {"mode": "outliers", "mask_size": 4, "epochs": 3, "train_limit": 40})
    request = prepare(spec, tmp_path / "broken")
    bench = make_bench(request)
    die_before_write(request, bench, 4)  # in the second epoch, after a step that no checkpoint holds
    resumed = execute(request, bench, started=0.0, quiet=True)
    assert len(list(request.folder.glob("events*"))) == 1
    found = read_scalars(request.folder)
    whole = prepare(spec, tmp_path / "whole")
    record = execute(whole, bench, started=0.0, quiet=True)
    expected = read_scalars(whole.folder)
    timed = {"throughput/tokens_per_second", "throughput/examples_per_second"}
    assert {tag: values for tag, values in found.items() if tag not in timed} == {
        tag: values for tag, values in expected.items() if tag not in timed
    }
    assert resumed.cost.resumed == 1

    # One in one go against its record: 2 steps of 16 in each of 3 epochs.
    epochs = record.result.epochs
    assert expected["loss/train"] == pytest.approx({epoch.epoch: epoch.train_loss for epoch in epochs}, rel=1e-6)
    for name in ("f1", "accuracy"):
        scores = {epoch.epoch: epoch.metrics["validation"][name] for epoch in epochs}
        assert expected[f"validation/{name}"] == pytest.approx(scores, rel=1e-6)
    losses = expected["steps/loss"]
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    means = [(losses[first] + losses[first + 1]) / 2 for first in (1, 3, 5)]
    assert means == pytest.approx([epoch.train_loss for epoch in epochs], rel=1e-6)
    rates = {1: 0.0, 2: 1e-2, 3: 0.8e-2, 4: 0.6e-2, 5: 0.4e-2, 6: 0.2e-2}  # one step of warm-up, then linear
    assert expected["steps/learning_rate"] == pytest.approx(rates, rel=1e-6)
    seconds = [32 / expected["throughput/examples_per_second"][epoch] for epoch in (1, 2, 3)]
    assert sum(seconds) == pytest.approx(record.cost.train_seconds, rel=1e-5)
    tokens = [expected["throughput/tokens_per_second"][epoch] * seconds[epoch - 1] for epoch in (1, 2, 3)]
    assert sum(tokens) == pytest.approx(record.cost.tokens, rel=1e-5)
    best = [max(epoch.metrics["validation"]["f1"] for epoch in epochs[:count]) for count in (1, 2, 3)]
    assert expected["score_best"] == pytest.approx(dict(zip((1, 2, 3), best, strict=True)), rel=1e-6)

    # What the HParams tab compares it by.
    metrics, runs = hparams_tab(tmp_path / "whole")
    assert metrics == ["score_best", "tuned", "collapsed"]
    status, parameters, values = runs[record.run_id]
    assert status == api_pb2.STATUS_SUCCESS
    stored = json.loads((whole.folder / "record.json").read_text())
    assert parameters == {name: stored["spec"][name] for name in parameters}
    assert set(parameters) == {"model", "task", "mode", "layers", "mask_size", "outlier_pool", "learning_rate", "seed",
                               "batch_size", "max_length", "batching", "train_limit", "epochs", "schedule", "optimizer",
                               "precision"}  # fmt: skip
    result = record.result
    assert values == pytest.approx({"score_best": result.score_best, "tuned": stored["parameters"]["tuned"],
                                    "collapsed": float(result.collapsed_in(result.best_epoch))}, rel=1e-6)  # fmt: skip


def test_events_of_a_diverged_run_say_so(small, tmp_path):
    request = prepare(RunSpec.make(**small | {"mode": "layernorm", "learning_rate": 1e38}), tmp_path)
    record = execute(request, make_bench(request), started=0.0, quiet=True)
    assert record.status == "diverged"
    (status, _, values) = hparams_tab(tmp_path)[1][request.run_id]
    assert status == api_pb2.STATUS_FAILURE
    assert values.get("score_best") == record.result.score_best
    assert read_scalars(request.folder)["steps/loss"].keys() <= {1, 2, 3}

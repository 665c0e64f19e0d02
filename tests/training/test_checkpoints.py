"""What a run makes of the checkpoint that it finds: it goes on exactly, or it starts anew, and never fails for ever."""

import warnings

import numpy as np
import pytest

from tfmt.errors import RequestError, RequestWarning
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors, write_tensors
from tfmt.training import fine_tune

GAMMA = "selected/bert/encoder/layer_._0/output/LayerNorm/gamma"


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 3}


@pytest.fixture
def prepared(settings, tmp_path):
    return lambda name, **changes: prepare(RunSpec.make(**settings | changes), tmp_path / name)


def run(request, bench):
    return execute(request, bench, started=0.0, quiet=True)


def change_state(request, change):
    path = request.folder / "checkpoint" / "state.safetensors"
    tensors, state = read_tensors(path)
    change(tensors, state)
    write_tensors(path, tensors, state)


def cut(request):
    path = request.folder / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_kept(request):
    (kept,) = (request.folder / "checkpoint").glob("kept.*")
    kept.unlink()


def rename_kept(request):
    """The weights of another epoch under the name of the one that was kept."""
    (kept,) = (request.folder / "checkpoint").glob("kept.*")
    write_tensors(kept, read_tensors(kept)[0], {"epoch": 7})


MISFITS = {
    "other shape": lambda tensors, state: tensors.update({GAMMA: tensors[GAMMA][:5]}),
    "missing weight": lambda tensors, state: tensors.pop(GAMMA),
    "other weight": lambda tensors, state: tensors.update({"selected/bert/pooler/dense/bias": tensors[GAMMA]}),
    "missing slot": lambda tensors, state: tensors.pop("optimizer/1"),
    "more slots": lambda tensors, state: tensors.update({"optimizer/99": np.zeros(3, np.float32)}),
    "other type": lambda tensors, state: tensors.update({GAMMA: tensors[GAMMA].astype(np.float64)}),
    "other model": lambda tensors, state: state.update(frozen_sha256="0" * 64),
    "other state": lambda tensors, state: state.update(step="some"),
}


@pytest.mark.parametrize("spoil", [*MISFITS, cut, lose_kept, rename_kept],
                         ids=lambda spoil: getattr(spoil, "__name__", str(spoil)))  # fmt: skip
def test_checkpoint_that_does_not_fit_is_discarded_and_the_run_starts_anew(
    bench, prepared, monkeypatch, same, die_before_write, spoil
):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)  # after each of the three steps of an epoch
    whole, broken = prepared("whole"), prepared("broken")
    expected = run(whole, bench)
    die_before_write(broken, bench, 5)  # two steps, what epoch 1 kept, its end, a step of epoch 2
    if callable(spoil):
        spoil(broken)
    else:
        change_state(broken, MISFITS[spoil])
    with pytest.warns(RequestWarning, match="it starts anew") as warned:
        record = run(broken, bench)
    assert [str(one.message).count("\n") for one in warned if one.category is RequestWarning] == [0]
    assert record.cost.resumed == 0
    assert same(broken, record) == same(whole, expected)


@pytest.fixture
def let_score(monkeypatch):
    """Lets the epochs of the runs that follow have these scores."""

    def let(*scores):
        left = iter(scores)
        monkeypatch.setattr(fine_tune, "headline", lambda *_: next(left))

    return let


def tuned(request):
    return read_tensors(request.folder / "tuned.safetensors")[0]


def test_weights_stored_are_of_the_kept_epoch_where_a_death_came_between_them_and_the_checkpoint(
    bench, prepared, let_score, die_before_write
):
    whole, broken = prepared("whole"), prepared("broken")
    let_score(0.5, 0.4, 0.3)
    run(whole, bench)
    let_score(0.5, 0.6)
    die_before_write(broken, bench, 3)  # epoch 1 is kept and its end saved; epoch 2 is kept, and the process dies
    kept = (broken.folder / "checkpoint").glob("kept.*")
    assert sorted(read_tensors(path)[1]["epoch"] for path in kept) == [1, 2]
    let_score(0.4, 0.3)  # on other devices epoch 2 may be no better than epoch 1
    assert run(broken, bench).cost.resumed == 1
    expected, found = tuned(whole), tuned(broken)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_one_kept_file_is_left_after_each_checkpoint(bench, prepared, let_score, die_before_write):
    request = prepared("runs", epochs=4)
    let_score(0.1, 0.2, 0.3, 0.4)
    die_before_write(request, bench, 6)  # three epochs, each kept and saved
    assert [path.name for path in sorted((request.folder / "checkpoint").iterdir())] == [
        "kept.3.safetensors", "state.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(("scores", "resumed"), [((0.1, 0.2, 0.3), 1), ((0.2, 0.1, 0.3), 0)])
def test_run_that_kept_scores_and_is_taken_up_for_its_weights(
    bench, prepared, let_score, die_before_write, scores, resumed
):
    # It died after the end of epoch 2, whose weights are those of the checkpoint; the weights of epoch 1 are lost.
    whole, broken = prepared("whole"), prepared("broken", keep="scores")
    let_score(*scores)
    run(whole, bench)
    let_score(*scores)
    die_before_write(broken, bench, 2)
    again = prepared("broken", keep="tuned")
    assert again.folder == broken.folder
    let_score(*(scores[2:] if resumed else scores))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if resumed == 0 else "error", RequestWarning)
        assert run(again, bench).cost.resumed == resumed
    expected, found = tuned(whole), tuned(again)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("spoil", [
    lambda tensors, about: about.pop("fisher"), lambda tensors, about: about["fisher"].update(examples="many"),
    lambda tensors, about: tensors.pop("bert.encoder.layer.0.output.LayerNorm.weight"),
    lambda tensors, about: tensors.update({name: array[:3] for name, array in tensors.items()}),
])  # fmt: skip
def test_fisher_information_that_does_not_fit_is_computed_again(bench, prepared, same, die_before_write, spoil):
    changes = {"mode": "fisher", "mask_fraction": 0.2, "fisher_examples": 8, "epochs": 1}
    whole, broken = prepared("whole", **changes), prepared("broken", **changes)
    expected = run(whole, bench)
    die_before_write(broken, bench, 3)  # the head, its Fisher information, and all of it
    path = broken.folder / "fisher.safetensors"
    tensors, about = read_tensors(path)
    spoil(tensors, about)
    write_tensors(path, tensors, about)
    assert same(broken, run(broken, bench)) == same(whole, expected)
    assert path.read_bytes() == (whole.folder / "fisher.safetensors").read_bytes()


def test_resume_on_other_devices_is_in_the_record(bench, prepared, die_before_write):
    alone = prepared("runs")
    die_before_write(alone, bench, 2)
    both = prepared("runs", replicas=2)
    assert both.folder == alone.folder
    record = run(both, make_bench(both))
    assert (record.cost.resumed, record.cost.replicas) == (1, 2)
    first, second = record.cost.computed_on
    assert first.startswith("CPU:0; ")
    assert second.startswith("CPU:0, CPU:1; ")
    assert read_record(alone.folder) == record
    assert record.proof.frozen_changed == 0
    expected = run(prepared("whole"), bench)
    for one, two in zip(record.result.epochs, expected.result.epochs, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-5)


def test_weights_that_were_not_kept_are_refused_in_one_line(bench, prepared):
    scores, whole = prepared("runs", keep="scores"), prepared("runs")
    record = run(scores, bench)
    before = (scores.folder / "record.json").read_bytes()
    assert finished(scores) == record
    with pytest.raises(RequestError, match="--keep=scores or another --output_dir, or delete the folder") as error:
        finished(whole)
    assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match="keep"):
        run(whole, bench)
    assert (scores.folder / "record.json").read_bytes() == before
    kept = prepared("other")
    run(kept, bench)
    assert finished(prepared("other", keep="scores")).spec.keep == "tuned"

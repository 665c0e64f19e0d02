"""What a run makes of the checkpoint that it finds: it goes on exactly, or it starts anew, and never fails for ever."""

import signal
import warnings

import numpy as np
import pytest

from tfmt import signals
from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors, write_tensors
from tfmt.training import fine_tune
from tfmt.training.workbench import Workbench

GAMMA = "selected/bert/encoder/layer_._0/output/LayerNorm/gamma"


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 3}


def run(request, bench):
    return execute(request, bench, started=0.0, quiet=True)


def states(request):
    """The states that are stored, the furthest first."""
    return sorted((request.folder / "checkpoint").glob("state.*"), reverse=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One bit, in the middle of the arrays."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def rename_kept(path):
    """The weights of another epoch under the name of the one that was kept."""
    write_tensors(path, read_tensors(path)[0], {"epoch": 7})


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


def spoiled(name):
    def change(path):
        tensors, state = read_tensors(path)
        MISFITS[name](tensors, state)
        write_tensors(path, tensors, state)

    return change


@pytest.fixture(scope="module")
def uninterrupted(bench, settings, tmp_path_factory, same):
    request = prepare(RunSpec.make(**settings), tmp_path_factory.mktemp("whole"))
    return same(request, run(request, bench))


@pytest.fixture
def broken(bench, prepared, monkeypatch, die_before_write):
    """A run that died in epoch 2, with the checkpoints of its first and its second step."""
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)  # after each of the three steps of an epoch
    request = prepared("broken")
    # Two steps, what epoch 1 kept, its end, two steps of epoch 2.
    die_before_write(request, bench, 6)
    assert [path.name for path in states(request)] == ["state.1-2.safetensors", "state.1-1.safetensors"]
    return request


def go_on(request, bench, match):
    with pytest.warns(RequestWarning, match=match) as warned:
        record = run(request, bench)
    told = [str(one.message) for one in warned if one.category is RequestWarning]
    assert all("\n" not in line and str(request.folder) in line for line in told)
    assert [f"{request.folder}/{note}".replace("; went on from", "; the run goes on from")
            for note in record.warnings] == told  # fmt: skip
    return record


@pytest.mark.parametrize("spoil", [*map(spoiled, MISFITS), cut, flip, empty], ids=[*MISFITS, "cut", "flip", "empty"])
def test_run_goes_on_from_the_checkpoint_before_one_that_does_not_fit(bench, broken, same, uninterrupted, spoil):
    path = states(broken)[0]
    spoil(path)
    damaged = path.read_bytes()
    record = go_on(broken, bench, "set aside as damaged.state.1-2.safetensors; the run goes on from step 1 of epoch 2")
    assert (broken.folder / f"damaged.{path.name}").read_bytes() == damaged
    assert record.cost.resumed == 1
    assert same(broken, record) == uninterrupted
    assert read_record(broken.folder) == record


def test_what_was_set_aside_is_noted_also_by_a_start_that_dies_before_it_stores_anything(
    bench, broken, die_before_write
):
    flip(states(broken)[0])
    with pytest.warns(RequestWarning, match=r"set aside as damaged\.state\.1-2"):
        die_before_write(broken, bench, 1)
    record = run(broken, bench)
    assert record.warnings == ["damaged.state.1-2.safetensors: found damaged and set aside by an earlier start"]


def test_a_checkpoint_of_another_run_is_none_of_this_ones(bench, prepared, broken, same, uninterrupted):
    for path in states(broken):
        tensors, state = read_tensors(path)
        write_tensors(path, tensors, state | {"run_id": "another"})
    assert same(broken, go_on(broken, bench, "it is another run's")) == uninterrupted


def test_a_run_that_stops_twice_at_one_place_keeps_the_checkpoint_before(bench, prepared, monkeypatch):
    request = prepared("broken")
    predict, calls = Workbench.predict, iter(range(9))

    def stop(self, name):
        if next(calls) in (1, 2):  # in the second evaluation, and in the first of the next start
            raise signals.Stop(signal.SIGTERM)
        return predict(self, name)

    monkeypatch.setattr(Workbench, "predict", stop)
    for _ in range(2):
        with pytest.raises(signals.Stop):
            run(request, bench)
        assert [path.name for path in states(request)] == ["state.1-3.safetensors", "state.1-0.safetensors"]


def test_weights_that_an_earlier_start_stored_go_where_scores_alone_are_kept(bench, prepared, die_before_write):
    kept = prepared("runs")
    die_before_write(kept, bench, 6)  # three epochs kept, two saved, and what was tuned
    assert (kept.folder / "tuned.safetensors").exists()
    record = run(prepared("runs", keep="scores"), bench)
    assert record.tuned_sha256 is None
    assert not (kept.folder / "tuned.safetensors").exists()
    with pytest.raises(RequestError, match="keep"):
        finished(kept)


def test_run_starts_anew_where_no_checkpoint_fits(bench, broken, same, uninterrupted):
    for path in states(broken):
        flip(path)
    record = go_on(broken, bench, "the run goes on from its start")
    assert sorted(path.name for path in broken.folder.glob("damaged.*")) == [
        "damaged.state.1-1.safetensors", "damaged.state.1-2.safetensors",
    ]  # fmt: skip
    assert len(record.warnings) == 2
    assert record.cost.resumed == 0
    assert same(broken, record) == uninterrupted


@pytest.mark.parametrize("spoil", [rename_kept, cut, flip, lambda path: path.unlink()],
                         ids=["renamed", "cut", "flip", "lost"])  # fmt: skip
def test_run_goes_back_to_where_its_kept_weights_are(bench, broken, same, uninterrupted, spoil):
    (kept,) = (broken.folder / "checkpoint").glob("kept.*")
    spoil(kept)
    record = go_on(broken, bench, r"checkpoint/kept\.1\.safetensors: .*the run goes on from its start")
    assert record.cost.resumed == 0
    assert same(broken, record) == uninterrupted


def test_kept_weights_are_made_again_from_a_checkpoint_that_holds_them(bench, prepared, same, uninterrupted,
                                                                       die_before_write):  # fmt: skip
    request = prepared("broken")
    die_before_write(request, bench, 2)  # the end of epoch 1
    (kept,) = (request.folder / "checkpoint").glob("kept.*")
    flip(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RequestWarning)
        assert same(request, run(request, bench)) == uninterrupted


def test_kept_weights_that_are_damaged_at_the_very_end_are_found_and_the_next_start_mends_it(
    bench, prepared, let_score, same, monkeypatch
):  # fmt: skip
    whole, request = prepared("whole"), prepared("broken")
    let_score(0.1, 0.3, 0.2)
    expected = same(whole, run(whole, bench))
    let_score(0.1, 0.3, 0.2)
    examine = fine_tune.examine

    def spoil(*given):
        flip(request.folder / "checkpoint" / "kept.2.safetensors")
        return examine(*given)

    with monkeypatch.context() as patched:
        patched.setattr(fine_tune, "examine", spoil)
        with pytest.raises(RunError, match=r"kept\.2\.safetensors: .*; run the same command again"):
            run(request, bench)
    assert not (request.folder / "record.json").exists()
    let_score(0.2)
    assert same(request, run(request, bench)) == expected


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


def test_two_checkpoints_are_left_and_the_kept_weights_that_they_name(bench, prepared, let_score, die_before_write):
    request = prepared("runs", epochs=4)
    let_score(0.1, 0.2, 0.3, 0.4)
    die_before_write(request, bench, 6)  # three epochs, each kept and saved
    assert [path.name for path in sorted((request.folder / "checkpoint").iterdir())] == [
        "kept.2.safetensors", "kept.3.safetensors", "state.2-0.safetensors", "state.3-0.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(("scores", "back"), [((0.1, 0.2, 0.3), False), ((0.2, 0.1, 0.3), True)])
def test_run_that_kept_scores_and_is_taken_up_for_its_weights(
    bench, prepared, let_score, die_before_write, scores, back
):
    # It died after the end of epoch 2. Those of epoch 1, if they are the kept ones, are in the checkpoint before.
    whole, broken = prepared("whole"), prepared("broken", keep="scores")
    let_score(*scores)
    run(whole, bench)
    let_score(*scores)
    die_before_write(broken, bench, 2)
    again = prepared("broken", keep="tuned")
    assert again.folder == broken.folder
    let_score(*scores[1 if back else 2 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if back else "error", RequestWarning)
        assert run(again, bench).cost.resumed == 1
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
    assert same(broken, go_on(broken, bench, "fisher.safetensors: .*set aside")) == same(whole, expected)
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

"""A run that a search lets wait: it goes on exactly as one that never waited, and tells until then what it scored."""

import pytest

from tfmt.errors import RequestError
from tfmt.runs.folder import drop_paused, tidy_finished
from tfmt.runs.paused import Paused, find_paused, read_paused
from tfmt.runs.records import Record, read_record
from tfmt.runs.runner import execute, execute_until, make_bench, record_failure
from tfmt.training.workbench import Workbench


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 4}


def run(request, bench, until=None, **more):
    if until is None:
        return execute(request, bench, started=0.0, quiet=True, **more)
    return execute_until(request, bench, until, started=0.0, quiet=True, **more)


@pytest.mark.parametrize("changes", [{}, {"mode": "fisher", "mask_fraction": 0.2, "fisher_examples": 8},
                                     {"mode": "outliers", "mask_size": 4, "keep": "scores"},
                                     {"keep_epoch": "last", "schedule": "constant"}],
                         ids=["layernorm", "fisher", "outliers", "last"])  # fmt: skip
def test_run_that_waited_twice_ends_bit_for_bit_as_one_that_did_not(bench, prepared, same, changes):
    whole, waits, other = prepared("whole", **changes), prepared("waits", **changes), prepared("waits", seed=7)
    expected = run(whole, bench)
    for epoch in (1, 3):
        paused = run(waits, bench, epoch)
        assert isinstance(paused, Paused)
        assert (paused.epoch, paused.rung, paused.run_id) == (epoch, epoch, whole.run_id)
        assert [(e.train_loss, e.metrics, e.collapsed) for e in paused.epochs] == [
            (e.train_loss, e.metrics, e.collapsed) for e in expected.result.epochs[:epoch]
        ]
        assert not (waits.folder / "record.json").exists()
        assert read_paused(waits.folder) == paused
        assert paused in find_paused(waits.folder.parent)[0]
        run(other, bench, epoch)  # on the same bench
    record = run(waits, bench)
    assert same(waits, record) == same(whole, expected)
    assert record.cost.resumed == 2
    assert not (waits.folder / "paused.json").exists()
    assert {path.name.split(".")[0] for path in waits.folder.iterdir()} == {
        path.name.split(".")[0] for path in whole.folder.iterdir()
    }


def test_run_that_is_to_wait_at_its_end_has_a_record(bench, prepared):
    record = run(prepared("runs"), bench, 4)
    assert isinstance(record, Record)
    assert run(prepared("runs"), bench, 1) == record  # it ended before


def test_run_that_has_come_further_waits_where_it_is(bench, prepared, die_before_write):
    request = prepared("runs")
    die_before_write(request, bench, 6)  # what three epochs kept, and their ends
    paused = run(request, bench, 1)
    assert (paused.epoch, paused.rung) == (3, 1)


def test_run_that_dies_on_its_way_on_still_tells_where_it_waited(bench, prepared, same, die_before_write):
    whole, broken = prepared("whole"), prepared("broken")
    expected = run(whole, bench)
    paused = run(broken, bench, 1)
    die_before_write(broken, bench, 2)
    assert read_paused(broken.folder) == paused
    record = run(broken, bench)
    assert same(broken, record) == same(whole, expected)
    assert find_paused(broken.folder.parent) == ([], [])


def test_run_whose_checkpoint_is_dropped_begins_anew_and_keeps_its_scores(bench, prepared, same):
    whole, dropped = prepared("whole"), prepared("dropped")
    expected = run(whole, bench)
    paused = run(dropped, bench, 2)
    drop_paused(dropped.folder)
    assert read_paused(dropped.folder) == paused
    assert not (dropped.folder / "checkpoint").exists()
    record = run(dropped, bench)
    assert record.cost.resumed == 0
    assert same(dropped, record) == same(whole, expected)


def test_run_that_failed_and_then_waits_has_not_failed(bench, prepared):
    request = prepared("runs")
    record_failure(request, "no number")
    run(request, bench, 1)
    assert not (request.folder / "record.json").exists()
    record_failure(request, "no number")
    assert read_paused(request.folder).epoch == 1
    assert find_paused(request.folder.parent) == ([], [])  # the record says more


def test_run_that_ended_loses_what_a_dying_process_left(bench, prepared):
    request = prepared("runs")
    run(request, bench, 1)
    left = (request.folder / "paused.json").read_bytes()
    record = run(request, bench)
    (request.folder / "paused.json").write_bytes(left)
    tidy_finished(request.folder, record)
    assert not (request.folder / "paused.json").exists()


def test_frozen_weight_that_moved_before_the_pause_fails_the_run(prepared, monkeypatch):
    real = Workbench.train_step

    def meddle(self, batch):
        variable = self.model.all_weights["bert/encoder/layer_._0/intermediate/dense/kernel"]
        variable.assign(variable + 1e-2)
        return real(self, batch)

    request = prepared("runs")
    with monkeypatch.context() as patched:
        patched.setattr(Workbench, "train_step", meddle)
        with pytest.raises(RuntimeError, match="outside the selection changed"):
            run(request, make_bench(request), 1)
    assert read_record(request.folder).status == "failed"
    assert read_paused(request.folder) is None


@pytest.mark.parametrize("spoil", [lambda text: text[:-20], lambda text: text.replace('"rung": 1', '"rung": 2'),
                                   lambda text: "{}"])  # fmt: skip
def test_damaged_file_is_told_and_made_again(bench, prepared, spoil):
    request = prepared("runs")
    paused = run(request, bench, 1)
    path = request.folder / "paused.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(RequestError, match=r"paused\.json: broken"):
        read_paused(request.folder)
    found, broken = find_paused(request.folder.parent)
    assert (found, len(broken)) == ([], 1)
    assert run(request, bench, 1) == paused

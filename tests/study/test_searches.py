"""Searched sweeps over a toy BERT: what is run is what the pure decision asks for, whatever comes between."""

import re
import subprocess
import threading
import time

import pytest
from safetensors.numpy import load_file

from tfmt import files, report, sweep
from tfmt.runs.lease import disk_clock
from tfmt.runs.paused import find_paused
from tfmt.runs.records import find_records
from tfmt.runs.runner import prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.study import board, worker
from tfmt.study.grid import expand_grid
from tfmt.study.search import Course, decide
from tfmt.study.sweep import Sweep
from tfmt.training import fine_tune

EPOCHS = 5
RATES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
GRID = {"task": "mrpc", "mode": "layernorm", "learning_rate": ",".join(map(str, RATES)), "seed": "0,1"}


@pytest.fixture(scope="module")
def shared(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "max_length": 32, "epochs": EPOCHS}


def flags_of(shared, folder, search, **changes):
    settings = shared | GRID | {"workers": 0, "output_dir": str(folder), "search": search} | changes
    return [f"--{name}={value}" for name, value in settings.items()]


def numbers(folder):
    """What must be the same in two sweeps, by run: epochs that ended, how, and the bytes of what is kept."""
    found = {}
    for record in find_records(folder)[0]:
        result, tuned = record.result, folder / record.run_id / "tuned.safetensors"
        epochs = [(epoch.train_loss, epoch.metrics) for epoch in result.epochs] if result else []
        found[record.run_id] = record.status, epochs, tuned.read_bytes() if tuned.exists() else b""
    for paused in find_paused(folder)[0]:
        found[paused.run_id] = "paused", [(epoch.train_loss, epoch.metrics) for epoch in paused.epochs], b""
    return found


@pytest.fixture(scope="module")
def everything(shared, tmp_path_factory):
    """All runs, to their ends."""
    folder = tmp_path_factory.mktemp("all")
    assert sweep.main(flags_of(shared, folder, "all")) == 0
    return folder


@pytest.fixture(scope="module")
def searched(shared, tmp_path_factory):
    """A folder for each search, and what its sweep said."""
    made = {}
    for search in ("first_seed", "halving"):
        made[search] = tmp_path_factory.mktemp(search)
        assert sweep.main(flags_of(shared, made[search], search)) == 0
    return made


def expect(search, folder):
    """{run id: epochs} by the decision alone, from what all runs show that were run to their ends."""
    whole, ids = {}, {}
    for record in find_records(folder)[0]:
        place = record.spec.learning_rate, record.spec.seed
        whole[place] = Course.of(record.result.epochs, record.result.score_name, record.status)
        ids[place] = record.run_id
    whole = {(rate, seed): whole[rate, seed] for rate in RATES for seed in (0, 1)}
    seen, before = dict.fromkeys(whole, Course()), None
    while seen != before:
        before = dict(seen)
        for place, until in decide(search, EPOCHS, seen).items():
            if until and not seen[place].ended:
                course = whole[place]
                seen[place] = Course(course.scores[:until], course.losses[:until], course.ended * (until == EPOCHS))
    return {ids[place]: course.epochs for place, course in seen.items() if course.epochs}


@pytest.mark.parametrize("search", ["first_seed", "halving"])
def test_search_runs_what_the_decision_asks_for_and_each_as_if_it_were_alone(
    shared, everything, searched, search, capsys, monkeypatch
):
    whole, found = numbers(everything), numbers(searched[search])
    expected = expect(search, everything)
    assert {run: len(epochs) for run, (_, epochs, _) in found.items()} == expected
    for run, (status, epochs, tuned) in found.items():
        assert epochs == whole[run][1][: expected[run]]
        if expected[run] == EPOCHS:
            assert (status, tuned) == (whole[run][0], whole[run][2])
    folders = list(searched[search].iterdir())
    assert len(folders) == len(expected)  # what is not run has no folder
    assert not [folder for folder in folders if (folder / "checkpoint").exists()]
    assert all((folder / "paused.json").exists() != (folder / "record.json").exists() for folder in folders)
    if search == "halving":
        assert sorted(expected.values())[:3] == [1, 1, 2]  # five rates: three go on, then two
    monkeypatch.setattr(worker, "make_bench", None)  # nothing is loaded again
    assert sweep.main(flags_of(shared, searched[search], search)) == 0
    told = capsys.readouterr().out
    done = sum(epochs == EPOCHS for epochs in expected.values())
    stopped = len(expected) - done
    counts = f"runs      10: {done} completed" + f", {stopped} stopped early" * bool(stopped)
    assert f"{counts}, {10 - len(expected)} not begun (others are better) ({done} of them before)" in told


def test_dry_run_tells_what_each_search_costs_and_what_is_left(shared, searched, tmp_path, capsys):
    assert sweep.main([*flags_of(shared, tmp_path, "halving"), "--dry_run"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "10", "50", "100", "%"] in told
    # Five rates to the end and one more seed; or 5 to epoch 1, 3 to 2, 2 to 5, and one more seed.
    assert ["first_seed", "6", "to", "7", "30", "to", "35", "60", "to", "70", "%"] in told
    assert ["halving", "6", "to", "7", "19", "to", "24", "38", "to", "48", "%", "(asked", "for)"] in told
    assert sweep.main([*flags_of(shared, searched["halving"], "halving"), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "more are not needed, as others are better (--search=halving)" in told
    assert "nothing is left to run" in told
    assert sweep.main([*flags_of(shared, searched["halving"], "all"), "--dry_run"]) == 0
    assert "nothing is left to run" not in capsys.readouterr().out


def test_tables_tell_of_the_runs_that_were_stopped(searched, capsys):
    stopped = find_paused(searched["halving"])[0]
    assert report.main([f"--runs={searched['halving']}", "--table=runs"]) == 0
    told = capsys.readouterr().out
    counts = "3 runs (2 at epoch 1 of 5, 1 at epoch 2 of 5)"
    assert f"Stopped by a search before their end, and in no number here: {counts}" in " ".join(told.split())
    for paused in stopped:
        assert re.search(rf"{paused.run_id}.*stopped at epoch {paused.epoch} of 5", told)
    for way, how in (("halving", "by stopping some rates early"), ("first_seed", "with some of the seeds")):
        assert report.main([f"--runs={searched[way]}", "--table=1"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"Learning rates were searched {how}: LayerNorms on mrpc. A search looks at the whole split" in told
    assert report.main([f"--runs={searched['halving']}", "--table=1", "--where=seed=1"]) == 0
    assert "topped" not in capsys.readouterr().out  # all that were stopped have the first seed


def test_packed_studies_tell_of_them_as_well(searched, tmp_path, capsys):
    pack = tmp_path / "study.jsonl.gz"
    assert report.main([f"--runs={searched['halving']}", f"--pack={pack}"]) == 0
    assert find_paused(pack) == find_paused(searched["halving"])
    assert find_paused([pack, searched["halving"]]) == find_paused(pack)
    told = []
    for runs in (pack, searched["halving"]):
        assert report.main([f"--runs={runs}", "--table=runs"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_killed_sweeps_go_on_deciding_the_same(shared, searched, tmp_path, monkeypatch):
    real = files.os.fsync
    for writes in (1, 4, 9, 13, 6, 15, 11, 3):
        left = iter(range(writes))

        def fsync(number, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(number)

        with monkeypatch.context() as patched:
            patched.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
            patched.setattr(files.os, "fsync", fsync)
            sweep.main(flags_of(shared, tmp_path, "halving"))
    assert sweep.main(flags_of(shared, tmp_path, "halving")) == 0
    assert numbers(tmp_path) == numbers(searched["halving"])
    assert not list(tmp_path.glob("*/checkpoint"))


def test_two_sweeps_at_once_decide_alike_and_run_every_run_once(shared, searched, tmp_path, capsys, impatient_sweep):
    flags = [*flags_of(shared, tmp_path, "halving"), "--verbosity=1"]
    other = subprocess.Popen([*impatient_sweep, *flags], stderr=subprocess.PIPE, text=True)
    status = []
    while not list(tmp_path.glob("*/lease.*")) and other.poll() is None:
        time.sleep(0.02)
    thread = threading.Thread(target=lambda: status.append(sweep.main(flags)))
    thread.start()
    thread.join(120)
    _, errors = other.communicate(timeout=120)
    assert (status, other.returncode) == ([0], 0), errors
    assert numbers(tmp_path) == numbers(searched["halving"])
    told = errors + capsys.readouterr().err
    records = len(find_records(tmp_path)[0])
    assert len(re.findall(r": completed$", told, re.MULTILINE)) == records
    assert len(re.findall(r": waits after epoch \d$", told, re.MULTILINE)) == 5 + 3  # on each rung, once


def test_all_of_them_are_run_after_a_search_where_that_is_asked_for(shared, everything, tmp_path):
    few = {"learning_rate": "1e-4,1e-2,1e-1"}
    assert sweep.main(flags_of(shared, tmp_path, "halving", **few)) == 0
    assert len(find_paused(tmp_path)[0]) == 1
    assert sweep.main(flags_of(shared, tmp_path, "all", **few)) == 0
    assert not list(tmp_path.glob("*/paused.json"))
    found = numbers(tmp_path)
    assert len(found) == 6
    assert found == {run: told for run, told in numbers(everything).items() if run in found}


def test_runs_of_processes_wait_and_the_board_says_so(shared, searched, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "_PLAIN_SECONDS", -1.0)
    assert sweep.main(flags_of(shared, tmp_path, "halving", workers=1)) == 0
    assert {run: told[:2] for run, told in numbers(tmp_path).items()} == {
        run: told[:2] for run, told in numbers(searched["halving"]).items()
    }
    told = capsys.readouterr().err
    assert re.search(r"^0/10 done, 0 failed, 1 running, 2 waiting for others, \d+ s left", told, re.MULTILINE)
    assert re.search(r"^2/10 done, 2 not needed, 0 failed, 1 running", told, re.MULTILINE)


def test_diverged_rate_is_out_and_a_cell_without_seeds_or_rates_is_whole(shared, tmp_path, capsys):
    assert sweep.main(flags_of(shared, tmp_path, "halving", learning_rate="1e-3,1e38,1e-2,1e-4", epochs=2)) == 0
    ended = {(r.spec.learning_rate, r.spec.seed): r.status for r in find_records(tmp_path)[0]}
    assert ended[1e38, 0] == "diverged"
    assert (1e38, 1) not in ended
    assert "1 diverged" in capsys.readouterr().out
    assert sweep.main(flags_of(shared, tmp_path / "rate", "halving", learning_rate="1e-3", epochs=2)) == 0
    assert [record.status for record in find_records(tmp_path / "rate")[0]] == ["completed"] * 2
    assert not list(tmp_path.glob("rate/*/paused.json"))


def test_failed_run_is_out_until_it_is_tried_again(shared, searched, tmp_path, monkeypatch):
    real = fine_tune.FineTuning.run
    (best,) = {record.spec.learning_rate for record in find_records(searched["halving"])[0] if record.spec.seed == 1}

    def run(self):
        if self.spec.learning_rate == best:
            raise FloatingPointError("no number")
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(fine_tune.FineTuning, "run", run)
        assert sweep.main(flags_of(shared, tmp_path, "halving")) == 1
    ended = {(r.spec.learning_rate, r.spec.seed): r.status for r in find_records(tmp_path)[0]}
    assert ended[best, 0] == "failed"
    assert sum(seed == 1 for _, seed in ended) in (1, 2)  # of another rate
    assert (best, 1) not in ended
    assert sweep.main(flags_of(shared, tmp_path, "halving", retry_failed="true")) == 0
    found, expected = numbers(tmp_path), numbers(searched["halving"])
    assert {run for run, told in expected.items() if told[0] == "completed"} <= found.keys()
    assert all(found[run] == told for run, told in expected.items() if told[0] == "completed")


def test_what_another_sweeps_failed_run_showed_before_counts_here_as_in_the_next_sweep(shared, searched, tmp_path):
    settings = shared | {"task": "mrpc", "mode": "layernorm"}
    grid = expand_grid({"task": ("mrpc",), "mode": ("layernorm",), "learning_rate": RATES, "seed": (0, 1)}, shared)
    mine = Sweep(grid, tmp_path, search="halving")
    paused = find_paused(searched["halving"])[0][0]
    (item,) = (item for item in mine._waiting if item.spec.learning_rate == paused.spec.learning_rate)
    request = prepare(RunSpec.make(**settings, learning_rate=paused.spec.learning_rate), tmp_path)
    record_failure(request, "no number")
    (request.folder / "paused.json").write_text(paused.to_json())
    assert not mine._is_open(item, disk_clock(tmp_path))
    told = mine._search.course(item.spec)
    assert (told.epochs, told.ended) == (paused.epoch, "failed")
    assert Sweep(grid, tmp_path, search="halving")._search.course(item.spec) == told


def test_unions_take_masks_of_the_runs_that_a_search_leaves(shared, toy_glue, tmp_path):
    data = tmp_path / "data"
    (data / "RTE").mkdir(parents=True)
    (data / "MRPC").symlink_to(toy_glue / "MRPC")
    for name in ("train", "dev"):
        rows = [line.split("\t") for line in (data / "MRPC" / f"{name}.tsv").read_text().splitlines()[1:]]
        lines = [f"{i}\t{b}\t{a}\t{('entailment', 'not_entailment')[i % 2]}" for i, (*_, a, b) in enumerate(rows)]
        (data / "RTE" / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    runs = tmp_path / "runs"
    flags = flags_of(shared, runs, "halving", data_dir=data, task="mrpc,rte", mode="fisher", mask_fraction="0.25",
                     learning_rate="1e-4,1e-2,1e-1", fisher_examples=16, epochs=2, fisher_union="held_out")  # fmt: skip
    assert sweep.main(flags) == 0
    records = find_records(runs)[0]
    assert {r.status for r in records} == {"completed"}
    for task, other in (("mrpc", "rte"), ("rte", "mrpc")):
        for seed in (0, 1):
            mine = [record for record in records if record.spec.seed == seed]
            unions = [record for record in mine if record.spec.task == task and record.spec.fisher_from]
            source = next(record for record in mine if record.spec.task == other and not record.spec.fisher_from)
            assert unions
            mask = load_file(runs / source.run_id / "fisher.safetensors")
            for union in unions:
                stored = load_file(runs / union.run_id / "tuned.safetensors")
                for name, indices in mask.items():
                    if name.endswith(".indices"):
                        assert stored[name].tolist() == indices.tolist()
    assert sweep.main(flags) == 0
    assert find_records(runs)[0] == records

"""Sweeps on machines that share no disk: real hands and workers, in place of Ray a call within this process."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from tfmt.bert.configs import find_shape
from tfmt.files import UnwritableError
from tfmt.runs.records import find_records
from tfmt.study import ray_pool
from tfmt.study.cluster import Node, Wish
from tfmt.study.grid import expand_grid
from tfmt.study.hand import Hand
from tfmt.study.places import Place
from tfmt.study.pool import ProcessPool
from tfmt.study.ray_pool import RayPool
from tfmt.study.shelf import Shelf
from tfmt.study.sweep import Sweep


class Machines:
    """A cluster whose machines are folders of this one."""

    address = "local"

    def __init__(self, *folders):
        self.folders = {f"id-{folder.name}": folder for folder in folders}

    def nodes(self):
        return [Node(node_id, folder.name, 1.0, 0.0) for node_id, folder in self.folders.items()]

    def answers(self):
        return True

    def make_hand(self, node, wish, verbosity, after):
        hand = Hand(Place(threads=1, orphan_seconds=10.0), verbosity, after)
        hand._shelf = Shelf(str(self.folders[node.node_id]))
        hand._shelf._own = True  # as with TFMT_NODE_DIR on a machine of its own
        return SimpleNamespace(hand=hand, greet=SimpleNamespace(remote=hand.greet))

    def wait_for(self, told, seconds):
        return told

    def ask(self, actor, seconds, method, *arguments):
        return getattr(actor.hand, method)(*arguments)

    def kill(self, actor):
        actor.hand.end()


@pytest.fixture
def settings(toy_bert, toy_glue, tmp_path, monkeypatch):
    """Model and data of the driver alone."""
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(toy_bert, tmp_path / "bert")
    shutil.copytree(toy_glue, tmp_path / "glue")
    return {"model": str(tmp_path / "bert"), "data_dir": str(tmp_path / "glue"), "max_length": 32, "epochs": 2}


def run_here(grid, output_dir):
    Sweep(grid, output_dir).run(make_pool=lambda *given: ProcessPool([Place(threads=1)], *given[:4]))


def run_far(grid, output_dir, *folders):
    sweep = Sweep(grid, output_dir)
    sweep.run(make_pool=lambda *given: RayPool(Machines(*folders), Wish(0.0, 1), 0, *given))
    assert not sweep.failures
    assert not sweep.left


def told(folder):
    """What runs below a folder recorded and stored, times and places aside."""
    found = {}
    for record in find_records(folder)[0]:
        run = folder / record.run_id
        result = record.result.model_dump()
        for epoch in result["epochs"]:
            del epoch["seconds"]
        tuned = {name: value.tobytes() for name, value in load_file(run / "tuned.safetensors").items()}
        files = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
        assert not [name for name in files if name.startswith(("lease", "."))]
        found[record.run_id] = (
            record.status,
            record.spec,
            result,
            record.proof,
            record.predictions_sha256,
            tuned,
            files,
        )
    return found


def test_runs_come_back_whole_with_the_bits_of_a_local_sweep(settings, tmp_path):
    axes = {"task": ("mrpc",), "mode": ("layernorm", "custom"), "learning_rate": (1e-3,), "seed": (0,),
            "select": ("layernorm:change(5, rate=1e-3, epochs=1)",)}  # fmt: skip
    grid = expand_grid(axes, settings, shape=find_shape(settings["model"]))
    run_here(grid, tmp_path / "local")
    run_far(grid, tmp_path / "runs", tmp_path / "east", tmp_path / "west")
    expected = told(tmp_path / "local")
    assert len(expected) == 3  # with the full fine-tuning that one compares with
    assert told(tmp_path / "runs") == expected
    for name in ("east", "west"):
        assert len(list((tmp_path / name / "parcels").iterdir())) == 2  # the model and the data
        assert not list((tmp_path / name / "runs").glob("*/mrpc-layernorm*"))
    assert not list((tmp_path / "runs").glob(".probe*"))


def test_run_that_does_not_come_back_once_is_made_again_and_no_other_is_taken_for_it(settings, tmp_path, monkeypatch):
    plain, failed = Shelf.snapshot, []

    def snapshot(self, token, run_id, checkpoint):
        if checkpoint and not failed:
            failed.append(run_id)
            raise UnwritableError.of(Path("far:/disk"), OSError(28, os.strerror(28)))
        return plain(self, token, run_id, checkpoint)

    monkeypatch.setattr(Shelf, "snapshot", snapshot)
    monkeypatch.setattr(ray_pool, "_LISTEN_SECONDS", 0.05)
    axes = {"task": ("mrpc",), "mode": ("layernorm",), "learning_rate": (1e-3,), "seed": (0, 1, 2)}
    grid = expand_grid(axes, settings | {"epochs": 6})
    run_here(grid, tmp_path / "local")
    run_far(grid, tmp_path / "runs", tmp_path / "east")
    assert failed
    assert told(tmp_path / "runs") == told(tmp_path / "local")

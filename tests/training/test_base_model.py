"""A base model whose files change while a run reads them: the run says so, and records nothing of what it computed."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfmt.errors import RunError
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune

GAMMA = "bert.encoder.layer.0.output.LayerNorm.weight"


def change_weights(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[GAMMA] = tensors[GAMMA] + np.float32(0.5)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-05'))


def spoil_weights(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[GAMMA][0] = np.nan
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(("change", "words"), [
    (change_weights, r"model\.safetensors: changed while the run read it \(the weights\)"),
    (change_config, r"changed while the run read it \(config.json's layer_norm_eps"),
    (lose_weights, "changed while the run read it"), (spoil_weights, "changed while the run read it"),
])  # fmt: skip
def test_base_model_that_changes_under_a_run_is_named_and_nothing_is_recorded(
    small, toy_bert, tmp_path, monkeypatch, same, change, words
):
    mine = tmp_path / "bert"
    shutil.copytree(toy_bert, mine)
    request = prepare(RunSpec.make(**small | {"model": str(mine), "mode": "layernorm"}), tmp_path / "runs")
    bench = make_bench(request)
    examine = fine_tune.examine

    def spoil(*given):
        found = examine(*given)
        change(mine)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(fine_tune, "examine", spoil)
        with pytest.raises(RunError, match=words) as error:
            execute(request, bench, started=0.0, quiet=True)
    assert str(mine) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (request.folder / "record.json").exists()
    shutil.rmtree(mine)
    shutil.copytree(toy_bert, mine)
    again = execute(request, make_bench(request), started=0.0, quiet=True)
    whole = prepare(request.spec, tmp_path / "whole")
    assert same(request, again) == same(whole, execute(whole, make_bench(whole), started=0.0, quiet=True))

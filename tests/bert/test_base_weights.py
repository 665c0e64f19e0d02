"""Weights: the same numbers from every kind of file that holds them, and clear words for what cannot be read."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tfmt
from tfmt.bert import digests
from tfmt.bert.base_weights import BaseWeights, model_digest
from tfmt.bert.configs import read_config, shape_of
from tfmt.bert.digests import file_digest
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.runs.runner import prepare
from tfmt.spec import RunSpec


def copy_without_weights(source, target):
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    return target


def shard(source, target, parts=3):
    """The layout of `save_pretrained(max_shard_size=...)`."""
    copy_without_weights(source, target)
    tensors = load_file(source / "model.safetensors")
    names = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({n: tensors[n] for n in names if names[n] == file}, target / file, metadata={"format": "pt"})
    write_index(target, names)
    return target


def write_index(folder, names):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def assert_equal_weights(folder, other, head="sentence"):
    one, two = BaseWeights(folder, head), BaseWeights(other, head)
    assert one.paths == two.paths
    for path in one.paths:
        assert two.read(path).dtype == np.float32
        np.testing.assert_array_equal(one.read(path), two.read(path), err_msg=path)


def test_shards_hold_the_same_weights(toy_bert, tmp_path):
    assert_equal_weights(toy_bert, shard(toy_bert, tmp_path / "sharded"))


def test_digest_of_shards_follows_each_of_them_and_the_index(toy_bert, tmp_path):
    folder = shard(toy_bert, tmp_path / "sharded")
    found = {model_digest(folder)}
    shutil.copytree(folder, tmp_path / "copy")
    assert model_digest(tmp_path / "copy") in found
    for path in sorted(folder.glob("model-*")):
        tensors = load_file(path)
        tensors[next(iter(tensors))][..., 0] += 1
        save_file(tensors, path, metadata={"format": "pt"})
        found.add(model_digest(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    write_index(folder, dict(reversed(index["weight_map"].items())))
    assert len(found) == 4
    assert model_digest(folder) in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names | {"bert.pooler.dense.bias": "../bert/model.safetensors"}, "beside it"),
        (lambda names: names | {"bert.pooler.dense.bias": "/etc/model.safetensors"}, "beside it"),
        (lambda names: names | {"bert.pooler.dense.bias": "pytorch_model-00001.bin"}, "safetensors file beside"),
        (lambda names: names | {"bert.pooler.dense.bias": 3}, "beside it"),
        (lambda names: names | {"bert.pooler.dense.bias": "model-00009-of-00009.safetensors"}, "00009.*: missing"),
        (lambda names: names | {"bert.pooler.dense.bias": names["bert.pooler.dense.weight"]}, "does not hold it"),
        (lambda names: {k: v for k, v in names.items() if "pooler" not in k}, "holds no bert.pooler.dense.weight"),
        (lambda names: {}, "names no tensor"), (lambda names: [], "names no tensor"),
    ],
)  # fmt: skip
def test_indexes_that_lead_elsewhere_are_refused(toy_bert, tmp_path, change, message):
    folder = shard(toy_bert, tmp_path / "bert" / "sharded", parts=2)
    shutil.copyfile(toy_bert / "model.safetensors", tmp_path / "bert" / "model.safetensors")
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(folder, change(names))
    with pytest.raises(RequestError, match=message) as error:
        BaseWeights(folder, "sentence")
    assert "\n" not in str(error.value)


def test_index_that_is_no_json_is_refused(toy_bert, tmp_path):
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(RequestError, match="not a readable index"):
        model_digest(folder)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", ["whole", "encoder", "theirs"])
def test_what_tensorflow_saves_is_read(toy_bert, tmp_path, kind, safe):
    import transformers

    if kind == "whole":
        model = tfmt.load_bert(str(toy_bert), seed=0)
    else:
        name = "TFBertModel" if kind == "encoder" else "TFBertForMaskedLM"
        model = getattr(transformers, name).from_pretrained(toy_bert)
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    model.save_pretrained(folder, safe_serialization=safe)
    shutil.copyfile(toy_bert / "config.json", folder / "config.json")
    assert (folder / ("model.safetensors" if safe else "tf_model.h5")).is_file()
    assert_equal_weights(toy_bert, folder, "tokens" if kind == "theirs" else "sentence")


def test_hdf5_that_leads_to_other_files_is_not_followed(toy_bert, tmp_path):
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    tfmt.load_bert(str(toy_bert), seed=0).save_pretrained(folder, safe_serialization=False)
    path = folder / "tf_model.h5"
    path.rename(tmp_path / "other.h5")
    with h5py.File(path, "w") as file:
        file["bert"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "bert")
    with pytest.raises(RequestError, match=r"holds no bert.embeddings"):
        BaseWeights(folder, "sentence")
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(path, "w") as file:
        file.create_dataset("bert/bert/pooler/dense/bias:0", (16,), "f4", external=str(tmp_path / "secret"))
    with pytest.raises(RequestError, match="in another file"):
        BaseWeights(folder, "sentence")
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(RequestError, match="not a readable HDF5"):
        BaseWeights(folder, "sentence")


@pytest.mark.parametrize(
    ("name", "words"),
    [("pytorch_model.bin", ["AutoModel", "PyTorch"]), ("pytorch_model.bin.index.json", ["AutoModel", "PyTorch"]),
     ("tf_model.h5.index.json", ["TFAutoModel", "safe_serialization"]), ("flax_model.msgpack", ["config.json"])],
)  # fmt: skip
def test_other_files_are_named_with_a_remedy(toy_bert, tmp_path, name, words):
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    (folder / name).write_bytes(b"?")
    with pytest.raises(RequestError, match=r"model\.safetensors: missing") as error:
        BaseWeights(folder, "sentence")
    assert all(word in str(error.value) for word in words)


def to_bfloat16(folder, target):
    """A copy with weights cut to bfloat16; what each then is as a float32, made from bits alone."""
    import ml_dtypes

    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    halves = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in tensors.items()}
    stored = {name: value.view(ml_dtypes.bfloat16) for name, value in halves.items()}
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    return {name: (value.astype(np.uint32) << 16).view(np.float32) for name, value in halves.items()}


def test_every_bfloat16_is_a_float32_in_a_process_without_tensorflow(toy_bert, tmp_path):
    expected = to_bfloat16(toy_bert, tmp_path / "half")
    code = (
        "import sys, numpy; from pathlib import Path; from tfmt.bert.base_weights import BaseWeights;"
        "base = BaseWeights(Path(sys.argv[1]), 'sentence');"
        "numpy.savez(sys.argv[2], **{path: base.read(path) for path in base.paths});"
        "assert not {'tensorflow', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "half", tmp_path / "read.npz"], check=True,
                   env=os.environ | {"PYTHONPATH": str(Path(tfmt.__file__).parents[1])})  # fmt: skip
    with np.load(tmp_path / "read.npz") as read:
        gamma = read["bert/encoder/layer_._1/output/LayerNorm/gamma"]
        kernel = read["bert/encoder/layer_._0/intermediate/dense/kernel"]
    assert gamma.dtype == kernel.dtype == np.float32
    np.testing.assert_array_equal(gamma, expected["bert.encoder.layer.1.output.LayerNorm.weight"])
    np.testing.assert_array_equal(kernel, expected["bert.encoder.layer.0.intermediate.dense.weight"].T)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats_are_read(toy_bert, tmp_path, kind):
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    tensors = load_file(toy_bert / "model.safetensors")
    save_file({n: v.astype(kind) for n, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    value = BaseWeights(folder, "sentence").read("bert/pooler/dense/kernel")
    expected = tensors["bert.pooler.dense.weight"].astype(kind).astype(np.float32).T
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("kind", "told"),
    [("int8", "I8"), ("uint8", "U8"), ("bool", "BOOL"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
     (ml_dtypes.float8_e5m2, "F8_E5M2")],
)  # fmt: skip
def test_quantised_weights_are_refused(toy_bert, tmp_path, kind, told):
    folder = tmp_path / "model"
    shutil.copytree(toy_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.key.weight"
    save_file(tensors | {name: tensors[name].astype(kind)}, folder / "model.safetensors")
    with pytest.raises(RequestError, match=f"{name} is stored as {told};.*quantised"):
        BaseWeights(folder, "sentence")


@pytest.mark.parametrize("layout", ["whole", "shards", "hdf5"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_values_that_are_not_finite_are_refused_before_a_run(toy_bert, toy_glue, tmp_path, layout, value):
    folder = copy_without_weights(toy_bert, tmp_path / "model")
    name, tensors = "bert.pooler.dense.bias", load_file(toy_bert / "model.safetensors")
    tensors[name] = tensors[name].astype(np.float64)
    tensors[name][3] = value
    file = {"whole": "model.safetensors", "shards": "model.safetensors.index.json", "hdf5": "tf_model.h5"}[layout]
    if layout == "whole":
        save_file(tensors, folder / file)
    elif layout == "shards":
        save_file(tensors, folder / "a.safetensors")
        (folder / file).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")}))
    else:
        with h5py.File(folder / file, "w") as written:
            for weight in list_weights(shape_of(read_config(folder)), "sentence", 1)[:-2]:
                stored = tensors[weight.torch_name]
                written[f"{weight.path}:0"] = stored.T if weight.transposed else stored
        name = "bert/pooler/dense/bias:0"
    spec = RunSpec.make(model=str(folder), data_dir=str(toy_glue), task="mrpc", mode="layernorm", max_length=32)
    for _ in range(2):  # what is refused is not remembered
        with pytest.raises(RequestError, match=f"{re.escape(file)}: {re.escape(name)} holds 1 value .*NaN"):
            prepare(spec, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    BaseWeights(folder, "tokens").check_values()  # which has no pooler


def test_values_are_looked_at_once(toy_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    BaseWeights(toy_bert, "sentence").check_values()
    monkeypatch.setattr(BaseWeights, "read", lambda *_: pytest.fail("read again"))
    BaseWeights(toy_bert, "sentence").check_values()


def test_figures_refuse_values_that_are_not_finite(toy_bert, tmp_path, capsys):
    from tfmt.analyze import main

    folder = copy_without_weights(toy_bert, tmp_path / "model")
    tensors = load_file(toy_bert / "model.safetensors")
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    tensors[name][5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    for figure in ("outliers", "weights"):
        drawn = tmp_path / f"{figure}.png"
        assert main([f"--figure={figure}", f"--model={folder}", f"--output={drawn}"]) == 2
        assert f"{folder / 'model.safetensors'}: {name} holds 1 value" in capsys.readouterr().err
        assert not drawn.exists()


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_digest_follows_content_of_equal_size_and_time(tmp_path, monkeypatch, how):
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1.0)  # remember at once
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    first = file_digest(path)
    assert list((tmp_path / "cache" / "digests").iterdir())
    if how == "in place":
        path.write_bytes(b"two")
    else:
        (tmp_path / "new").write_bytes(b"two")
        (tmp_path / "new").replace(path)
    os.utime(path, ns=(10**18, 10**18))
    assert file_digest(path) != first


def test_digest_is_remembered_once_a_file_has_settled(tmp_path, monkeypatch):
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert not (tmp_path / "cache" / "digests").exists()  # it may change again within one tick of the clock
    now = digests.time.time()
    monkeypatch.setattr(digests.time, "time", lambda: now + 60)
    assert file_digest(path) == first
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_digest(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("TFMT_CACHE", str(tmp_path / "cache"))
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    whole = memo.read_bytes()
    for place in range(len(whole)):  # each byte with another bit of it flipped
        memo.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        assert digests.recall("digests", memo.name) in (None, first)
    memo.write_bytes(b"\xff broken")
    assert file_digest(path) == first

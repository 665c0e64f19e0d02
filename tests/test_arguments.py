"""What the public calls refuse: each argument's wrong values, in one line that names it, before anything is done."""

from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

import tfmt
from tfmt.spec import RunSpec

GAMMA = "bert/encoder/layer_._0/output/LayerNorm/gamma"  # 16 weights
NAN = float("nan")
NO_NUMBERS = [None, True, "1", "x", 1.5, NAN, [1], {}, np.zeros(2)]
NO_TEXTS = [None, True, 1, 1.5, b"demo", ["demo"], {}]
NO_PATHS = [None, True, 1, NAN, b"runs", ["runs"], "", " ", "a\0b", "\ud800", "y" * 300, "y/" * 3000]


@pytest.fixture(scope="module")
def model(toy_bert):
    return tfmt.load_bert(str(toy_bert), name="refuses")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def refused(call, *words):
    with pytest.raises(tfmt.RequestError) as error:
        call()
    told = str(error.value)
    assert "\n" not in told
    assert len(told) < 1100
    for word in words:
        assert word in told, told


def each(name, values, *words):
    return [pytest.param({name: value}, words or (name,), id=f"{name}-{value!r:.30}") for value in values]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *each("model", [*NO_TEXTS, "", "a\0b", "\ud800", "y" * 5000, Path("./nowhere/at/all")], "model"),
        *each("num_labels", [*NO_NUMBERS, 0, -1, 10**12]),
        *each("seed", [*NO_NUMBERS, -1, 2**31, 2**64, 10**400]),
        *each("classes", [None, 3, "ab", ("a", "b", "c"), ["a"], ("a", "a"), (1, 2), {"a": 1, "b": 2}]),
        *each("head", [None, "", "sentences", 1]), *each("name", [None, "", "a b", "a\n", 1]),
        *each("dropout", [-0.1, 1.0, 2, NAN, "0.1", True, [0.1]]), *each("revision", [None, 1, b"main", "\ud800"]),
    ],
)  # fmt: skip
def test_load_bert(toy_bert, arguments, words):
    refused(lambda: tfmt.load_bert(**{"model": str(toy_bert)} | arguments), *words)


def test_load_bert_takes_what_is_meant(toy_bert):
    model = tfmt.load_bert(toy_bert, np.int64(3), np.int32(1), classes=["a", "b", "c"])
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    same = tfmt.load_bert(str(toy_bert), 3, 1)
    np.testing.assert_array_equal(model.get_weights()[-2], same.get_weights()[-2])


OUTLIERS, FISHER = {"mode": "outliers", "mask_size": 4}, {"mode": "fisher", "mask_fraction": 0.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *each("mode", [None, "", "lora", 1, ["full"]], "mode must be 'full'"),
        *each("layers", [None, [0, 1], (0,), 1, range(2), "", "x", "1-0", "2", "9" * 5000], "layers"),
        *each("seed", [*NO_NUMBERS, -1, 2**31, 2**64, 10**400]),
        ({"mask_size": 4}, ["mask_size means nothing for mode=layernorm"]),
        ({"mask_fraction": 0.5}, ["mask_fraction means nothing for mode=layernorm"]),
        ({"outlier_pool": "beta"}, ["outlier_pool means nothing for mode=layernorm"]),
        ({"fisher": {}}, ["fisher means nothing for mode=layernorm"]),
        ({"union": {GAMMA: [0]}}, ["union means nothing for mode=layernorm"]),
        ({"mode": "frozen", "layers": "0"}, ["layers means nothing for mode=frozen"]),
        ({"mode": "outliers"}, ["needs mask_size"]), ({"mode": "fisher_control"}, ["needs mask_fraction"]),
        ({"mode": "fisher"}, ["mask_fraction", "union"]), (FISHER, ["Fisher information", "fisher=..."]),
        *((OUTLIERS | {"mask_size": value}, ["mask_size"]) for value in [*NO_NUMBERS[1:], 0, -1, 33, 10**30]),
        *((OUTLIERS | {"outlier_pool": value}, ["outlier_pool"]) for value in [None, "", "evil", 1, ["gamma"]]),
        *((FISHER | {"mask_fraction": value, "fisher": {}}, ["mask_fraction"])
          for value in [0.0, -1, 1.5, NAN, float("inf"), True, "0.5", [0.5]]),
        *((FISHER | {"fisher": value}, ["fisher"])
          for value in [*NO_PATHS[1:], {"x": [1.0]}, {1: [1.0]}, {GAMMA: [1.0]}]),
        (FISHER | {"fisher": {GAMMA: ["a"] * 16}}, ["fisher has a number"]),
        (FISHER | {"union": {GAMMA: [0]}}, ["not both"]),
        ({"mode": "fisher", "fisher": {}, "union": {GAMMA: [0]}}, ["not both"]),
        *(({"mode": "fisher", "union": value}, ["union"]) for value in [3, "x", [0], {}]),
        *(({"mode": "fisher", "union": {path: [0]}}, [str(path), "union"])
          for path in [7, "gamma", GAMMA + ":0", "bert/pooler/dense/bias", "classifier/kernel"]),
        *(({"mode": "fisher", "union": {GAMMA: value}}, [GAMMA])
          for value in [None, 3, "0", [0.5], [0, NAN], [-1], [16], [10**30], [2**63], [0, 0], [[0]], [[0], [0, 1]],
                        [True] * 15]),
        ({"mode": "fisher", "union": {GAMMA: []}}, ["no weight", "union"]),
    ],
)  # fmt: skip
def test_select(model, arguments, words):
    before = model._selected_paths
    refused(lambda: tfmt.select(model, **{"mode": "layernorm"} | arguments), *words)
    assert model._selected_paths == before


@pytest.mark.parametrize("thing", [None, 3, "demo", [], keras.Sequential()])
def test_select_takes_models(thing):
    refused(lambda: tfmt.select(thing, "full"), "tfmt.load_bert")


def test_select_takes_what_is_meant(model):
    chosen = tfmt.select(model, mode="outliers", mask_size=np.int64(3), seed=np.int64(2))
    assert chosen.tuned == 12
    union = {GAMMA: np.array([5, 1]), GAMMA.replace("gamma", "beta"): np.arange(16) < 2}
    chosen = tfmt.select(model, mode="fisher", union=union)
    assert [found.tolist() for found in chosen.masks.values()] == [[1, 5], [0, 1]]


def test_flags_and_select_refuse_alike(model):
    for settings in ({"mode": "outliers", "mask_size": 0}, {"mode": "outliers"}, {"seed": -1}, {"layers": "x"},
                     {"mode": "outliers", "mask_size": 1, "outlier_pool": "evil"}, {"mode": "fisher_control"},
                     {"mode": "fisher", "mask_fraction": NAN}, {"mode": "lora"}, {"seed": "1"}):  # fmt: skip
        told = []
        for call in (lambda **given: tfmt.select(model, **given), lambda **given: RunSpec.make(**given)):
            with pytest.raises(tfmt.RequestError) as error:
                call(**{"mode": "layernorm"} | settings | ({"model": "demo", "task": "mrpc"} if told else {}))
            told.append(str(error.value))
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        *((value, ["masks must be"]) for value in [None, 3, "x", [0], np.zeros(2), set()]),
        ({7: [0]}, ["7", "paths"]), ({None: [0]}, ["None", "paths"]), ({}, ["no weight"]),
        *(({"w": value}, ["'w'"]) for value in [None, 3, "0", [0.5], [NAN], [-1], [2**63], [10**30], [0, 0], [[0]],
                                                [[0], [0, 1]], ["0"], object()]),
    ],
)  # fmt: skip
def test_gradient_mask(masks, words):
    refused(lambda: tfmt.GradientMask(keras.optimizers.SGD(), masks), *words)
    refused(lambda: tfmt.GradientMask(keras.optimizers.SGD(), {"w": [0]}).assign_masks(masks), *words)


@pytest.mark.parametrize("optimizer", [None, "adam", 3, {}, keras.optimizers.SGD])
def test_optimizers(model, optimizer):
    refused(lambda: tfmt.GradientMask(optimizer, {"w": [0]}), "tf_keras optimizer")
    for settings in (OUTLIERS, {"mode": "layernorm"}):
        refused(lambda chosen=settings: tfmt.select(model, **chosen).optimizer(optimizer), "tf_keras optimizer")


@pytest.mark.parametrize("path", NO_PATHS)
def test_paths(toy_bert, path):
    spec = RunSpec.make(model=str(toy_bert), task="mrpc", mode="full", data_dir="nowhere", max_length=32)
    refused(lambda: tfmt.read_runs(path), "runs")
    refused(lambda: tfmt.load_tuned(path), "run")
    refused(lambda: tfmt.fine_tune(spec, path), "output_dir")
    if path not in ("", None):
        refused(lambda: tfmt.load_tuned("nowhere", model=path), "model")


@pytest.mark.parametrize("spec", [None, "demo", {"model": "demo", "task": "mrpc", "mode": "full"}, 3, RunSpec])
def test_fine_tune_takes_specs(spec):
    refused(lambda: tfmt.fine_tune(spec), "tfmt.RunSpec.make")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *each("model", [None, 3, "", {}, [], len], "tfmt.load_bert"), ({"model": "a\0b"}, ["model", "NUL"]),
        *each("texts", [None, 3, "text", b"text", {"a": 1}, {"a"}, [], np.array([["a"]]), np.array("a")]),
        *each("texts", [[None], [1], [b"a"], ["a", NAN], [["a"]], ["\ud800"]], "texts["),
        *each("pairs", [3, "text", {"a": 1}, [], ["a", "b"], [None], ["\ud800"]], "pair"),
        *each("max_length", [*NO_NUMBERS, 0, -1, 7, 65, 10**30]),
    ],
)  # fmt: skip
def test_tokenize(toy_bert, arguments, words):
    refused(lambda: tfmt.tokenize(**{"model": str(toy_bert), "texts": ["a"], "max_length": 16} | arguments), *words)


@pytest.mark.parametrize("text", [None, 3, b"{}", "", "[]", "{", "[" * 100_000, '{"model": "\\ud800"}', "\ud800"])
def test_specs_from_json(text):
    refused(lambda: RunSpec.from_json(text))


def test_specs_that_no_json_could_hold():
    usual = {"model": "demo", "task": "custom", "mode": "full", "data_dir": "d", "text_columns": ("a",),
             "label_column": "y", "task_type": "classification"}  # fmt: skip
    for name in ("model", "revision", "data_dir", "label_column", "encoding"):
        refused(lambda field=name: RunSpec.make(**usual | {field: "\udcff"}), name)
    refused(lambda: RunSpec.make(**usual | {"text_columns": ("\ud800",)}), "text_columns")
    refused(lambda: RunSpec.make(**usual | {"mode": "fisher", "fisher_from": ("a", "")}), "fisher_from")
    assert RunSpec.make(**usual | {"epochs": np.int64(2), "warmup_ratio": np.float32(0.5)}) == RunSpec.make(
        **usual, epochs=2, warmup_ratio=0.5
    )

"""RunSpec: strict, normalised, the same id for the same run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmt.errors import RequestError
from tfmt.spec import ARITHMETIC, MODES, RunSpec, format_layers, parse_layers

BASE = {"model": "demo", "task": "mrpc", "mode": "layernorm"}
CUSTOM = {"task": "custom", "data_dir": "d", "text_columns": ("a", "b"), "label_column": "y",
          "task_type": "classification"}  # fmt: skip


def make(**changes):
    return RunSpec.make(**(BASE | changes))


def test_json_both_ways():
    spec = make(mode="outliers", mask_size=16, layers="3,1,2", learning_rate=5e-3)
    assert RunSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["layers"] == "1-3"


def test_minus_zero_is_zero():
    assert make(warmup_ratio=-0.0).run_id() == make(warmup_ratio=0.0).run_id()


def test_is_immutable():
    with pytest.raises(Exception, match="frozen"):
        make().seed = 3


@pytest.mark.parametrize(
    ("task", "mode", "epochs"),
    [
        ("mrpc", "full", 5), ("sst2", "full", 5), ("sst2", "layernorm", 10), ("qqp", "frozen", 10),
        ("mnli", "bitfit", 10), ("qnli", "random", 10), ("cola", "layernorm", 20), ("rte", "frozen", 20),
        ("stsb", "attention", 20), ("mrpc", "feedforward", 20), ("conll2003_ner", "layernorm", 20),
    ],
)  # fmt: skip
def test_epochs_0_is_the_papers_rule(task, mode, epochs):
    assert make(task=task, mode=mode).epochs == epochs


def test_fields_that_mean_nothing_make_no_second_run():
    plain = make()
    assert make(mask_size=16, mask_fraction=0.5, outlier_pool="gamma", split_seed=3) == plain
    assert make(mode="frozen", layers="1") == make(mode="frozen")
    assert make(epochs=20, learning_rate=5e-3) == plain
    assert make(layers="0-1,2") == make(layers="2,1,0")


def test_id_depends_on_what_changes_the_result_and_on_nothing_else():
    digests = {"model": "a", "data": "b"}
    name = make().run_id(**digests)
    assert name.startswith("mrpc-layernorm-lr0.005-s0-")
    for same in ({"replicas": 2}, {"data_dir": "/elsewhere"}, {"model": "/a/folder"}, {"jit_compile": "on"},
                 {"cache_limit_gb": 1.0}, {"keep": "scores"}):  # fmt: skip
        assert make(**same).run_id(**digests) == name
    for field, value in {
        "task": "rte", "mode": "full", "layers": "0", "learning_rate": 1e-4, "epochs": 3, "batch_size": 8,
        "max_length": 64, "warmup_ratio": 0.0, "schedule": "constant", "adam_epsilon": 1e-8, "seed": 1,
        "batching": "random", "train_limit": 9, "validation_limit": 9, "precision": "bfloat16",
        "keep_epoch": "last", "clip_norm": 1.0, "early_stopping": 3,
    }.items():  # fmt: skip
        assert make(**{field: value}).run_id(**digests) != name, field
    others = [make(optimizer=kind, learning_rate=5e-3) for kind in ("adam", "adamw", "sgd", "lion", "adafactor")]
    others += [make(optimizer="adamw", learning_rate=5e-3, weight_decay=decay) for decay in (0.01, 0.1)]
    assert len({spec.run_id(**digests) for spec in others}) == len(others)
    assert others[0].run_id(**digests) == name
    assert others[2].run_id(**digests).startswith("mrpc-layernorm-sgd-lr0.005-s0-")
    assert make().run_id(model="other", data="b") != name
    assert make().run_id(model="a", data="other") != name


def test_a_field_that_is_added_renames_no_run():
    class Later(RunSpec):
        tempo: float | None = None
        colour: str = "red"
        columns: tuple[str, ...] = ()

    digests = {"model": "a", "data": "b"}
    for changes in ({}, {"mode": "full", "seed": 3}, {"task": "ptb_pos", "split_seed": 1}, {"keep_epoch": "last"}):
        assert Later.make(**BASE | changes).run_id(**digests) == make(**changes).run_id(**digests)
    others = [{"tempo": 1.0}, {"colour": "blue"}, {"columns": ("a",)}, {"columns": ("a",), "colour": "blue"}]
    ids = {Later.make(**BASE | changes).run_id(**digests) for changes in others}
    assert len(ids | {make().run_id(**digests)}) == 5
    # A record of before the field was there reads as one with its default.
    assert Later.from_json(make().to_json()).run_id(**digests) == make().run_id(**digests)


@pytest.mark.parametrize(("run_id", "changes"), [
    ("mrpc-layernorm-lr0.005-s0-0ff9e5ab66", {}),
    ("cola-outliers-L1-n16-lr0.005-s2-9a910ee6f3",
     {"task": "cola", "mode": "outliers", "mask_size": 16, "adam_epsilon": 1e-8, "seed": 2, "layers": "1"}),
    ("rte-full-lr5e-05-s0-a6f60dafc1",
     {"task": "rte", "mode": "full", "keep_epoch": "last", "batching": "random"}),
])  # fmt: skip
def test_id_of_a_run_that_was_made_before_later_flags(run_id, changes):
    assert make(**changes).run_id(model="a", data="b") == run_id
    plain = {"optimizer": "adam", "weight_decay": 0.0, "clip_norm": 0.0, "early_stopping": 0}
    assert make(**changes, **plain).run_id(model="a", data="b") == run_id


def test_what_means_nothing_for_an_optimizer_makes_no_second_run():
    for kind in ("sgd", "lion", "adafactor"):
        plain = make(optimizer=kind, learning_rate=1e-2)
        assert make(optimizer=kind, learning_rate=1e-2, adam_epsilon=1e-3) == plain
    adamw = {"optimizer": "adamw", "learning_rate": 1e-2}
    assert make(**adamw, adam_epsilon=1e-3) != make(**adamw)
    assert make(epochs=3, early_stopping=3) == make(epochs=3) != make(epochs=3, early_stopping=2)


def test_no_field_joins_those_in_every_id():
    in_every_id = (
        "adam_epsilon batch_size batching encoding epochs fisher_examples frozen_prefix keep_epoch label_column layers"
        " learning_rate mask_fraction mask_size max_length mode outlier_pool precision schedule seed split_seed task"
        " task_type text_columns train_limit validation_fraction validation_limit warmup_ratio"
    )
    assert sorted(make().identity()["settings"]) == in_every_id.split()


def test_id_is_the_hash_of_the_identity():
    import hashlib

    identity = make().identity(model="a", data="b")
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert make().run_id(model="a", data="b").endswith(hashlib.sha256(text.encode()).hexdigest()[:10])
    assert identity["arithmetic"] == ARITHMETIC


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"task": "mrp"}, "task"), ({"mode": "everything"}, "mode"), ({"layers": "a"}, "layers"),
        ({"layers": "3-1"}, "layers"), ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"), ({"learning_rate": "1e-3"}, "learning_rate"),
        ({"epochs": -1}, "epochs"), ({"epochs": 1.5}, "epochs"), ({"batch_size": 0}, "batch_size"),
        ({"max_length": 4}, "max_length"), ({"warmup_ratio": 1.0}, "warmup_ratio"), ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"), ({"speed": 3}, "speed"), ({"mode": "outliers"}, "mask_size"),
        ({"mode": "outliers", "mask_size": 0}, "mask_size"), ({"mode": "fisher"}, "mask_fraction"),
        ({"mode": "fisher", "mask_fraction": 1.5}, "mask_fraction"), ({"task": "custom"}, "data_dir"),
        (CUSTOM | {"text_columns": ("a", "a")}, "different columns"), (CUSTOM | {"label_column": "a"}, "different"),
        ({"replicas": 3}, "batch_size"), ({"model": ""}, "model"),
        ({"mode": "fisher", "mask_fraction": 0.1, "fisher_from": ["a"]}, "fisher_from"),
        ({"optimizer": "adagrad", "learning_rate": 0.1}, "optimizer"), ({"optimizer": "adamw"}, "--learning_rate"),
        ({"optimizer": "sgd"}, "--learning_rate"), ({"weight_decay": 0.1}, "take --optimizer=adamw"),
        ({"weight_decay": -0.1, "optimizer": "sgd", "learning_rate": 0.1}, "weight_decay"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"early_stopping": -1}, "early_stopping"), ({"early_stopping": 1.5}, "early_stopping"),
        ({"mode": "custom", "select": "full = layernorm"}, "give the selection another"),
        ({"mode": "custom", "select": "two\nlines = layernorm"}, "printable characters"),
    ],
)  # fmt: skip
def test_refuses(changes, culprit):
    with pytest.raises(RequestError) as error:
        make(**changes)
    assert culprit in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_field_is_named():
    with pytest.raises(RequestError, match="mode is required"):
        RunSpec.make(model="demo", task="mrpc")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_broken_json_is_refused(text):
    with pytest.raises(RequestError):
        RunSpec.from_json(text)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_layers_round_trip(blocks):
    ordered = tuple(sorted(blocks))
    assert parse_layers(format_layers(ordered)) == ordered
    assert parse_layers(",".join(map(str, blocks))) == ordered


def test_every_mode_makes_a_spec():
    extra = {"outliers": {"mask_size": 4}, "outliers_control": {"mask_size": 4}}
    extra |= {"fisher": {"mask_fraction": 0.1}, "fisher_control": {"mask_fraction": 0.1}}
    extra |= {"custom": {"select": "layernorm"}}
    assert {make(mode=mode, **extra.get(mode, {})).mode for mode in MODES} == set(MODES)


def test_one_default_rate_for_every_selection():
    selects = ("attention", "attention - attention.bias", "x = layernorm:far(3)", "all - embeddings", "none")
    assert {make(mode="custom", select=select).learning_rate for select in selects} == {1e-3}


def test_a_name_may_be_that_of_a_score():
    assert make(mode="custom", select="fisher = all:fisher(5)").trained == "fisher"

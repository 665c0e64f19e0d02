import pytest

from tfmt.errors import RequestError
from tfmt.spec import TASK_NAMES
from tfmt.tasks import TASKS, custom_task, find_task


def test_every_task_name_of_the_spec_is_in_the_table():
    assert {*TASKS, "custom"} == set(TASK_NAMES)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_tasks_hold_together(task):
    assert set(task.headline) <= set(task.metrics)
    assert len(set(task.classes)) == len(task.classes)
    assert (task.head == "tokens") == (task.kind == "tokens")
    assert (task.kind == "regression") == (not task.classes)
    assert not task.sizes or set(task.sizes) == {"train", *task.validation_splits}
    if task.glue is not None:
        assert len(task.glue.text_columns) == len(task.text_fields)
        assert len(task.glue.labels) == len(task.classes)


def test_headlines():
    assert {name: task.headline_name for name, task in TASKS.items()} == {
        "cola": "matthews_correlation",
        "sst2": "accuracy",
        "mrpc": "f1",
        "stsb": "pearson_spearman_mean",
        "qqp": "f1",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
        "ptb_pos": "accuracy",
        "conll2003_ner": "f1",
        "rotten_tomatoes": "accuracy",
    }


def test_the_penn_treebank_has_45_tags():
    assert find_task("ptb_pos").num_labels == 45


def test_glue_classes_and_sizes_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    for task in TASKS.values():
        if task.glue is not None:
            features = tfds.builder(task.tfds_name).info.features
            assert set(features) == {*task.text_fields, "label", "idx"}
            if task.classes:
                assert tuple(features["label"].names) == task.classes


def test_unknown_tasks_are_named():
    with pytest.raises(RequestError, match="wnli"):
        find_task("wnli")
    with pytest.raises(RequestError, match="read_dataset"):
        find_task("custom")


def test_custom_tasks_follow_their_kind():
    assert custom_task("classification", ("a", "b"), ("no", "yes")).num_labels == 2
    assert custom_task("regression", ("a",), ()).num_labels == 1
    assert custom_task("regression", ("a",), ()).headline_name == "pearson_spearman_mean"
    tags = custom_task("tokens", ("word",), ("NN", "O", "VB"))
    assert (tags.head, tags.entities, tags.fill_class) == ("tokens", False, -1)
    entities = custom_task("tokens", ("word",), ("B-GENE", "I-GENE", "O"))
    assert (entities.entities, entities.fill_class, entities.headline) == (True, 2, ("f1",))

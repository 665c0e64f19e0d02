import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tfmt.data.sources import list_data_files, read_dataset_for
from tfmt.files import relocated
from tfmt.spec import RunSpec

ENTITIES = "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP I-PER\nran VB I-VP O\n"
PAIRS = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
TREES = {f"combined/wsj_{i:04}.mrg": "( (S (NNP Mr.) (VBZ is)) )\n" for i in range(1, 200)}
ROWS = "text\tlabel\n" + "".join(f"good {i}\tyes\nbad {i}\tno\n" for i in range(9))
OWN = {"task_type": "classification", "text_columns": ("text",), "label_column": "label"}
# The files of a folder, how many of them are read, and the settings of a run that reads them.
FOLDERS = {
    "glue": ({f"RTE/{name}.tsv": PAIRS for name in ("train", "dev", "test")}, 2, {"task": "rte"}),
    "glue's own folder": ({f"{name}.tsv": PAIRS for name in ("train", "dev")}, 2, {"task": "rte"}),
    "conll": (dict.fromkeys(("eng.train", "eng.testa", "eng.testb", "eng.raw"), ENTITIES), 3,
              {"task": "conll2003_ner"}),
    "trees": (TREES | {"README": ""}, 199, {"task": "ptb_pos"}),
    "own folder": (dict.fromkeys(("train.tsv", "dev.tsv", "test.tsv", "old.tsv"), ROWS), 3, {"task": "custom", **OWN}),
}  # fmt: skip


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def check_that_these_are_enough(spec, count, tmp_path):
    """A copy of the files alone, elsewhere, is read as the data are; what was there is gone."""
    expected = read_dataset_for(spec)
    place, files = list_data_files(spec)
    assert len(files) == count
    copy = tmp_path / "copy"
    for path in files:
        target = copy / path.relative_to(place if place.is_dir() else place.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.rmtree(tmp_path / "data")
    with relocated({spec.data_dir: str(copy if place != files[0] else copy / place.name)}):
        found = read_dataset_for(spec)
    assert found.digests == expected.digests
    assert found.notes == expected.notes
    assert (found.test is None) == (expected.test is None)


@pytest.mark.parametrize("kind", FOLDERS)
def test_listed_files_are_all_that_is_read(tmp_path, kind):
    files, count, settings = FOLDERS[kind]
    write(tmp_path / "data", files)
    spec = RunSpec.make(model="demo", mode="layernorm", data_dir=str(tmp_path / "data"), **settings)
    check_that_these_are_enough(spec, count, tmp_path)


def test_listed_file_that_is_the_data(tmp_path):
    write(tmp_path / "data", {"all.tsv": ROWS, "other.tsv": ROWS})
    place = str(tmp_path / "data" / "all.tsv")
    spec = RunSpec.make(
        model="demo", task="custom", mode="layernorm", data_dir=place, validation_fraction=0.4, split_seed=0, **OWN
    )
    check_that_these_are_enough(spec, 1, tmp_path)


@pytest.mark.parametrize("named", [True, False])
def test_listed_archive_of_trees(tmp_path, monkeypatch, named):
    (tmp_path / "data" / "corpora").mkdir(parents=True)
    archive = tmp_path / "data" / "corpora" / "treebank.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in TREES.items():
            file.writestr(f"treebank/{name}", content)
    monkeypatch.setattr("tfmt.data.treebank._nltk_places", lambda: [archive.parent])
    spec = RunSpec.make(model="demo", task="ptb_pos", mode="layernorm", data_dir=str(archive) if named else "")
    check_that_these_are_enough(spec, 1, tmp_path)


def test_packaged_text_has_no_files():
    assert list_data_files(RunSpec.make(model="demo", task="rotten_tomatoes", mode="layernorm")) == (Path(), [])


def test_counting_examples_imports_nothing_heavy(tmp_path):
    (tmp_path / "RTE").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    code = (
        "import sys, tfmt.data, tfmt.metrics, tfmt.tasks\n"
        f"print(tfmt.data.count_examples('rte', {str(tmp_path)!r}), tfmt.data.count_examples('mnli')['train'])\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'tf_keras', 'transformers', 'sklearn', 'scipy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == "{'train': 1, 'validation': 1} 392702\n[]\n"

"""One short run of every kind of task through the command: one text, pairs, scores, two splits, entities, own files."""

import json
import shutil

import numpy as np
import pytest

from tfmt import train
from tfmt.data.sources import read_dataset_for
from tfmt.runs.records import find_records, read_runs
from tfmt.training.predictions import read_predictions


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def sentences(count, seed=0):
    words = np.array(["good", "bad", "film", "plot", "the", "dull", "bright", "actor"])
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(count)]


def write_stsb(folder):
    for name, seed in (("train", 0), ("dev", 1)):
        pairs = zip(sentences(24, seed), sentences(24, seed + 9), strict=True)
        rows = [f"{i}\t{a}\t{b}\t{len(set(a.split()) & set(b.split())):.3f}" for i, (a, b) in enumerate(pairs)]
        write_lines(folder / "STS-B" / f"{name}.tsv", ["index\tsentence1\tsentence2\tscore", *rows])


def write_mnli(folder):
    labels = ("entailment", "neutral", "contradiction")
    for name in ("train", "dev_matched", "dev_mismatched"):
        pairs = zip(sentences(24), sentences(24, 3), strict=True)
        rows = [f"{i}\t{a}\t{b}\t{labels[i % 3]}" for i, (a, b) in enumerate(pairs)]
        write_lines(folder / "MNLI" / f"{name}.tsv", ["index\tsentence1\tsentence2\tgold_label", *rows])


def write_cola(folder):
    for name in ("train", "dev"):
        rows = [f"src\t{i % 2}\t\t{text}" for i, text in enumerate(sentences(24))]
        write_lines(folder / "CoLA" / f"{name}.tsv", rows)


def write_conll(folder):
    for name in ("train", "valid", "test"):
        lines = ["-DOCSTART- -X- -X- O", ""]
        for text in sentences(24):
            lines += [f"{word} NN I-NP {'B-PER' if word == 'actor' else 'O'}" for word in text.split()] + [""]
        write_lines(folder / f"{name}.txt", lines)


def write_own(folder):
    rows = [json.dumps({"text": text, "mood": "up" if "good" in text else "down"}) for text in sentences(60)]
    write_lines(folder / "data.jsonl", rows)


@pytest.mark.parametrize(
    ("task", "write", "flags", "score"),
    [
        ("stsb", write_stsb, [], "pearson_spearman_mean"), ("mnli", write_mnli, [], "accuracy"),
        ("cola", write_cola, [], "matthews_correlation"), ("conll2003_ner", write_conll, [], "f1"),
        ("custom", write_own, ["--text_columns=text", "--label_column=mood", "--task_type=classification",
                               "--validation_fraction=0.25"], "accuracy"),
    ],
)  # fmt: skip
def test_trains_and_records(toy_bert, tmp_path, capsys, task, write, flags, score):
    write(tmp_path / "data")
    data = tmp_path / "data" / "data.jsonl" if task == "custom" else tmp_path / "data"
    common = [f"--model={toy_bert}", f"--task={task}", f"--data_dir={data}", "--max_length=16", "--batch_size=8",
              "--epochs=2", f"--output_dir={tmp_path / 'runs'}", *flags]  # fmt: skip
    for mode in ("layernorm", "outliers"):
        status = train.main([*common, f"--mode={mode}", *(["--mask_size=2"] if mode == "outliers" else [])])
        assert status == 0, capsys.readouterr().err
    runs = read_runs(tmp_path / "runs")
    assert runs.status.tolist() == ["completed"] * 2
    assert runs.score_name.tolist() == [score] * 2
    assert runs.frozen_changed.tolist() == [0, 0]
    for record in find_records(tmp_path / "runs")[0]:
        stored = read_predictions(tmp_path / "runs" / record.run_id, sha256=record.predictions_sha256)
        about = read_dataset_for(record.spec).task
        for epoch in record.result.epochs:
            assert {split: stored.score(about, split, epoch.epoch).values for split in epoch.metrics} == epoch.metrics
            assert epoch.halves.keys() == epoch.metrics.keys()
    record = json.loads(next((tmp_path / "runs").glob("*-layernorm-*/record.json")).read_text())
    splits = {"mnli": ["validation_matched", "validation_mismatched"]}.get(task, ["validation"])
    assert list(record["result"]["epochs"][0]["metrics"]) == splits
    if task == "conll2003_ner":
        words = sum(len(text.split()) for text in sentences(24))
        assert record["result"]["words"]["validation"]["words"] == words
        assert sum(record["result"]["predicted"]["validation"].values()) == words


@pytest.mark.parametrize("cased", [False, True])
def test_a_cased_task_warns_of_a_vocabulary_without_case(toy_bert, tmp_path, capsys, cased):
    model = tmp_path / "bert"
    shutil.copytree(toy_bert, model)
    (model / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    write_conll(tmp_path / "data")
    status = train.main([f"--model={model}", "--task=conll2003_ner", f"--data_dir={tmp_path / 'data'}", "--mode=frozen",
                         "--max_length=16", "--epochs=1", f"--output_dir={tmp_path / 'runs'}"])  # fmt: skip
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert status == 0
    assert [line.split(" lower-cases ")[0] for line in warned] == ([] if cased else [f"tfmt-train: warning: {model}"])

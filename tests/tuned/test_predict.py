"""tfmt-predict: the record's score again, every layout, streams, and what is refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from seqeval.metrics import f1_score

from tfmt import predict
from tfmt.data.examples import Examples
from tfmt.data.rows import read_rows
from tfmt.errors import RequestWarning
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tasks import TASKS, custom_task
from tfmt.training.predictor import Predictions
from tfmt.tuned import predict as room
from tfmt.tuned.layouts import ServerLayout, TableLayout, WordLayout, file_name
from tfmt.tuned.load import load_tuned

WORDS = ["good", "bad", "film", "plot", "the", "dull", "bright", "actor"]


def sentences(count, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(2, 9))) for _ in range(count)]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def tune(toy_bert, folder, **settings):
    spec = RunSpec.make(model=str(toy_bert), mode="layernorm", max_length=16, batch_size=8, epochs=2,
                        learning_rate=2e-2, **settings)  # fmt: skip
    request = prepare(spec, folder)
    execute(request, make_bench(request), started=0.0, quiet=True)
    return request.folder


def call(capsys, **settings):
    status = predict.main([f"--{name}={value}" for name, value in settings.items()])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def table(path):
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return lines[0], lines[1:]


@pytest.fixture(scope="module")
def mrpc(toy_bert, toy_glue, tmp_path_factory):
    place = tmp_path_factory.mktemp("mrpc")
    shutil.copytree(toy_glue, place / "glue")
    pairs = zip(sentences(9, 1), sentences(9, 2), strict=True)
    header = "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
    write_lines(
        place / "glue" / "MRPC" / "test.tsv", [header, *(f"{i}\t1\t2\t{a}\t{b}" for i, (a, b) in enumerate(pairs))]
    )
    return tune(toy_bert, place / "runs", task="mrpc", data_dir=str(place / "glue"), precision="bfloat16")


@pytest.fixture(scope="module")
def own(toy_bert, tmp_path_factory):
    place = tmp_path_factory.mktemp("own")
    rows = [json.dumps({"id": i, "text": text, "mood": "up" if "good" in text else "down"})
            for i, text in enumerate(sentences(60))]  # fmt: skip
    data = write_lines(place / "data.jsonl", rows)
    columns = {"text_columns": ("text",), "label_column": "mood", "task_type": "classification"}
    return tune(toy_bert, place / "runs", task="custom", data_dir=str(data), validation_fraction=0.25, **columns)


@pytest.fixture(scope="module")
def entities(toy_bert, tmp_path_factory):
    place = tmp_path_factory.mktemp("conll")
    for seed, name in enumerate(("train", "valid", "test")):
        lines = ["-DOCSTART- -X- -X- O", ""]
        for text in [*sentences(24, seed), " ".join(WORDS * 4)]:  # the last is longer than max_length
            lines += [f"{word} NN I-NP {'B-PER' if word == 'actor' else 'O'}" for word in text.split()] + [""]
        write_lines(place / f"{name}.txt", lines)
    with pytest.warns(RequestWarning, match="lower-cases its text"):
        return tune(toy_bert, place / "runs", task="conll2003_ner", data_dir=str(place))


def kept_metrics(run):
    result = read_record(run).result
    return result.epochs[result.best_epoch - 1].metrics["validation"]


@pytest.mark.parametrize("name", ["mrpc", "own", "entities"])
def test_validation_gives_the_score_of_the_record_again(request, tmp_path, name):
    run = request.getfixturevalue(name)
    (written,) = room.prepare_prediction(run, str(tmp_path / "out.tsv"), split="validation").write()
    assert written.scores.values == kept_metrics(run)
    assert written.source.same_data
    assert written.examples == read_record(run).result.examples["validation"]


def test_entities_in_iobes_are_learnt_and_scored_as_entities(toy_bert, tmp_path, capsys):
    truth = {}
    for seed, name in enumerate(("train", "validation")):
        lines, truth[name] = [], []
        for number, text in enumerate(sentences(300, seed)):
            words = text.split() + ["good", "film"] * (number % 2)
            tags = ["S-who" if word == "actor" else "O" for word in words]
            for i in range(len(words) - 1):
                if words[i : i + 2] == ["good", "film"]:
                    tags[i : i + 2] = ["B-what", "E-what"]
            truth[name].append(tags)
            lines += ["# id = 1", *(f"{word} {tag}" for word, tag in zip(words, tags, strict=True)), ""]
        write_lines(tmp_path / f"{name}.conll", lines)
    run = tune(toy_bert, tmp_path / "runs", task="custom", data_dir=str(tmp_path), text_columns=("0",),
               label_column="1", task_type="tokens")  # fmt: skip
    record = read_record(run)
    assert record.result.score_name == "f1"
    assert record.origin.data_notes["entity_tags"]["train"]["scheme"] == "IOBES"
    assert call(capsys, run=run, split="validation", output=tmp_path / "out.tsv")[0] == 0
    blocks = (tmp_path / "out.tsv").read_text().strip().split("\n\n")
    predicted = [[line.split("\t")[1] for line in block.splitlines()] for block in blocks]
    assert kept_metrics(run)["f1"] == pytest.approx(f1_score(truth["validation"], predicted))
    assert kept_metrics(run)["f1"] > 0


def test_glue_files_are_those_of_the_server(mrpc, tmp_path, capsys):
    status, out, err = call(capsys, run=mrpc, split="test", output=tmp_path / "glue")
    assert (status, err) == (0, ""), err
    assert "MRPC.tsv" in out
    header, rows = table(tmp_path / "glue" / "MRPC.tsv")
    assert header == ["index", "prediction"]
    assert [row[0] for row in rows] == [str(i) for i in range(9)]
    assert {row[1] for row in rows} <= {"0", "1"}
    status, out, _ = call(capsys, run=mrpc, split="validation", output=tmp_path / "glue")
    assert status == 0
    assert f"f1 {100 * kept_metrics(mrpc)['f1']:.2f}" in out
    assert (tmp_path / "glue" / "MRPC.validation.tsv").exists()
    # The same texts as a file of one's own.
    test = read_record(mrpc).spec.data_dir
    status, _, err = call(capsys, run=mrpc, input=f"{test}/MRPC/test.tsv", output=tmp_path / "own.tsv")
    assert status == 0, err
    assert table(tmp_path / "own.tsv")[1] == rows


def test_own_columns_come_back_with_prediction_and_probability(own, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text('name,text\n"a\tb","good ""film"""\nc,"bad\nplot"\nd,the dull plot\n')
    status, _, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert status == 0, err
    header, rows = table(tmp_path / "out.tsv")
    assert header == ["name", "text", "prediction", "probability"]
    assert [row[:2] for row in rows] == [["a b", 'good "film"'], ["c", "bad plot"], ["d", "the dull plot"]]
    model = load_tuned(own)
    from tfmt.bert.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(room.read_tuned(own).base)
    inputs = dict(tokenizer(['good "film"', "bad\nplot", "the dull plot"], padding=True, return_tensors="np"))
    logits = model(inputs).logits.numpy().astype(float)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [row[2] for row in rows] == [("down", "up")[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose([float(row[3]) for row in rows], expected.max(axis=1), atol=2e-6)


def test_labels_beside_the_texts_are_scored(own, tmp_path, capsys):
    texts = sentences(40, 5)
    moods = ["up" if "good" in text else "down" for text in texts]
    path = write_lines(tmp_path / "in.tsv", ["mood\ttext", *map("\t".join, zip(moods, texts, strict=True))])
    status, out, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert (status, err) == (0, ""), err
    _, rows = table(tmp_path / "out.tsv")
    right = sum(mood == row[2] for mood, row in zip(moods, rows, strict=True)) / 40
    assert f"accuracy {100 * right:.2f}  (N = 40)" in out
    path = write_lines(tmp_path / "in.tsv", ["mood\ttext", "up\tgood film", "glad\tbad plot"])
    status, out, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert status == 0
    assert "accuracy" not in out
    assert "not scored: " in err
    assert "in.tsv:3: 'glad' in column mood is no label of the run (down, up)" in err
    assert err.count("\n") == 1


def test_labels_of_an_input_are_read_as_those_of_the_run(own, tmp_path, capsys):
    # Blanks around a class do not count, as in training; a column of another name is not the run's label.
    path = write_lines(tmp_path / "in.tsv", ["text\tmood\tlabel", "good film\t up \tx", "bad plot\tdown\ty"])
    status, out, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert (status, err) == (0, ""), err
    assert "(N = 2)" in out
    path = write_lines(tmp_path / "in.tsv", ["text\tlabel", "good film\tup", "bad plot\tdown"])
    status, out, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert (status, err) == (0, ""), err
    assert "accuracy" not in out
    # The second row has no label: the predictions are written, and a line says why there is no score.
    rows = ['{"text": "good film", "mood": "up"}', '{"text": "bad plot"}']
    (tmp_path / "out").mkdir()
    for count, told in ((2, "in.jsonl:2: no column 'mood'"), (1, "")):
        path = write_lines(tmp_path / "in.jsonl", rows[:count])
        status, out, err = call(capsys, run=own, input=path, output=tmp_path / "out")
        assert status == 0, err
        assert told in err
        assert ("accuracy" in out) == (not told)
        assert len((tmp_path / "out" / "in.predictions.tsv").read_text().splitlines()) == count + 1


def test_labels_in_the_files_of_glue_are_scored(mrpc, tmp_path, capsys):
    data = read_record(mrpc).spec.data_dir
    status, out, err = call(capsys, run=mrpc, input=f"{data}/MRPC/dev.tsv", output=tmp_path / "out.tsv")
    assert status == 0, err
    assert f"f1 {100 * kept_metrics(mrpc)['f1']:.2f}  accuracy" in out
    assert "(N = 20)" in out


def test_entities_of_an_input_are_scored_whatever_their_scheme(entities, tmp_path, capsys):
    lines = ["-DOCSTART- -X- -X- O", ""]
    for text in sentences(30, 9):
        lines += [f"{word} NN I-NP {'I-PER' if word == 'actor' else 'O'}" for word in text.split()] + [""]  # IOB1
    path = write_lines(tmp_path / "in.txt", lines)
    status, out, err = call(capsys, run=entities, input=path, output=tmp_path / "out.tsv")
    assert (status, err) == (0, ""), err
    blocks = (tmp_path / "out.tsv").read_text().strip().split("\n\n")
    predicted = [[line.split("\t")[1] for line in block.splitlines()] for block in blocks]
    words = [text.split() for text in sentences(30, 9)]
    # Two actors in a row are one entity of IOB1.
    truth = [[("I-PER" if i and row[i - 1] == "actor" else "B-PER") if word == "actor" else "O"
              for i, word in enumerate(row)] for row in words]  # fmt: skip
    assert f"f1 {100 * f1_score(truth, predicted):.2f}" in out


def test_tags_that_are_others_than_the_words_of_their_row_score_nothing(entities, tmp_path, capsys):
    rows = [(["a", "good", "actor"], ["O", "O"]), (["good", "film"], ["O", "O", "O"])]  # as many in all
    path = write_lines(tmp_path / "in.jsonl", [json.dumps({"words": words, "label": tags}) for words, tags in rows])
    with pytest.warns(RequestWarning, match=r"in\.jsonl:1: column label has 2 tags for 3 words"):
        tuple(room.prepare_prediction(str(entities), str(tmp_path / "out.tsv"), input_file=str(path)).write())


def test_validation_part_of_one_file_keeps_its_columns(own, tmp_path, capsys):
    status, out, _ = call(capsys, run=own, split="validation", output=tmp_path / "out.tsv")
    assert status == 0
    assert "accuracy" in out
    header, rows = table(tmp_path / "out.tsv")
    assert header == ["id", "text", "mood", "prediction", "probability"]
    right = sum(row[2] == row[3] for row in rows) / len(rows)
    assert right == pytest.approx(kept_metrics(own)["accuracy"])


def test_words_and_tags(entities, tmp_path, capsys):
    status, out, err = call(capsys, run=entities, split="test", output=tmp_path / "out.tsv")
    assert (status, err) == (0, ""), err
    assert "18 words beyond" in out  # 32 words, of which max_length 16 leaves 14
    lines = (tmp_path / "out.tsv").read_text().split("\n")
    assert lines[-2:] == ["", ""]
    told = [[line.split("\t")[0] for line in block.split("\n")] for block in "\n".join(lines).strip().split("\n\n")]
    assert told == [text.split() for text in [*sentences(24, 2), " ".join(WORDS * 4)]]
    assert {line.split("\t")[1] for line in lines if line} <= set(TASKS["conll2003_ner"].classes)
    truth = [["B-PER" if word == "actor" else "O" for word in sentence] for sentence in told]
    predicted = iter("O" if line[-1] == "_" else line.split("\t")[1] for line in lines if line)
    score = f1_score(truth, [[next(predicted) for _ in sentence] for sentence in told])
    assert re.search(rf"^test .* f1 {100 * score:.2f} .*\(N = {sum(map(len, told))}\)$", out, re.MULTILINE)
    plain = write_lines(tmp_path / "plain.txt", [word for text in sentences(3) for word in [*text.split(), ""]])
    status, _, err = call(capsys, run=entities, input=plain, output=tmp_path / "plain.tsv")
    assert status == 0, err
    assert (tmp_path / "plain.tsv").read_text().count("\n\n") == 3


def test_streams_part_by_part(own, tmp_path, monkeypatch):
    texts = [f"{text} {'good' if i % 2 else 'bad'}" for i, text in enumerate(sentences(50))]
    path = write_lines(tmp_path / "in.tsv", ["text", *texts])
    whole = tmp_path / "whole.tsv"
    list(room.prepare_prediction(own, str(whole), input_file=str(path)).write())
    original, largest = room.stream_unlabelled, []

    def small(*arguments):
        for rows, examples in original(*arguments, chunk=7):
            largest.append(len(rows))
            yield rows, examples

    monkeypatch.setattr(room, "stream_unlabelled", small)
    (written,) = room.prepare_prediction(own, str(tmp_path / "parts.tsv"), input_file=str(path)).write()
    assert written.examples == 50
    assert max(largest) == 7
    a, b = table(whole)[1], table(tmp_path / "parts.tsv")[1]
    assert [row[:2] for row in a] == [row[:2] for row in b]
    np.testing.assert_allclose([float(row[2]) for row in a], [float(row[2]) for row in b], atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, ["holds no test file"]), ({"split": "dev"}, ["dev", "validation"]),
        ({}, ["--split", "--input"]), ({"split": "validation", "input": "other.tsv"}, ["one of them"]),
        ({"input": "/nowhere.tsv"}, ["--input=/nowhere.tsv"]), ({"input": "rows.xls"}, ["rows.xls", ".tsv"]),
        ({"input": "other.tsv"}, ["other.tsv:2", "text", "sentence"]),
        ({"input": "empty.tsv"}, ["empty.tsv", "no example"]),
        ({"input": "bad.tsv"}, ["bad.tsv:3", "2 fields"]), ({"input": "taken.tsv"}, ["taken.tsv", "'prediction'"]),
        ({"input": "taken.tsv", "output": "taken.tsv"}, ["taken.tsv", "give another"]),
        ({"split": "validation", "run": "/nowhere"}, ["/nowhere", "record.json"]),
        ({"split": "validation", "output": ""}, ["--output"]), ({"split": "validation", "model": "."}, ["config.json"]),
        ({"split": "validation", "data_dir": "/nowhere"}, ["/nowhere"]),
    ],
)  # fmt: skip
def test_refuses(own, tmp_path, capsys, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.xls", ["text", "good film"])
    write_lines(tmp_path / "other.tsv", ["sentence", "good film"])
    write_lines(tmp_path / "empty.tsv", ["text"])
    write_lines(tmp_path / "bad.tsv", ["text", "good film", "good\tfilm"])
    write_lines(tmp_path / "taken.tsv", ["text\tprediction", "good film\tup"])
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    data = {"data_dir": tmp_path} if changes.get("split") == "test" else {}
    status, out, err = call(capsys, **({"run": own, "output": "out.tsv"} | data | changes))
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for word in words:
        assert word in err
    assert before == {path.name: path.read_text() for path in tmp_path.iterdir()}


def test_refuses_another_base_model(own, toy_bert, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(toy_bert, other)
    moved = tmp_path / "moved"
    shutil.copytree(toy_bert, moved)
    blob = bytearray((other / "model.safetensors").read_bytes())
    blob[-1] ^= 1
    (other / "model.safetensors").write_bytes(blob)
    path = write_lines(tmp_path / "in.tsv", ["text", "good film"])
    status, _, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv", model=other)
    assert status == 2
    assert "digest differs" in err
    assert not (tmp_path / "out.tsv").exists()
    assert call(capsys, run=own, input=path, output=tmp_path / "out.tsv", model=moved)[0] == 0


def test_names_and_values_of_every_glue_task():
    names = {file_name(task, split) for task in TASKS.values() if task.glue for split in task.test_splits}
    assert names == {"CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv",
                     "QNLI.tsv", "RTE.tsv"}  # fmt: skip
    examples = Examples((["a", "b", "c"],), None)
    shown = {}
    for task in TASKS.values():
        if task.glue is not None:
            values = (
                np.array([0, 1, len(task.classes) - 1]) if task.classes else np.array([-0.5, 2.25, 7.0], np.float32)
            )
            lines = list(ServerLayout(task).lines(None, examples, Predictions(values, None)))
            assert lines[0] == "index\tprediction"
            shown[task.name] = [line.split("\t")[1] for line in lines[1:]]
    assert all(shown[name] == ["0", "1", "1"] for name in ("cola", "sst2", "mrpc", "qqp"))
    assert shown["mnli"] == ["entailment", "neutral", "contradiction"]
    assert shown["rte"] == shown["qnli"] == ["entailment", "not_entailment", "not_entailment"]
    assert shown["stsb"] == ["0.000000", "2.250000", "5.000000"]


def test_scores_have_no_probability_and_cut_off_tags_say_nothing():
    scores = Predictions(np.array([1.5, -2.0]), None)
    lines = list(
        TableLayout(custom_task("regression", ("t",), ()), "in").lines(None, Examples((["a", "b"],), None), scores)
    )
    assert lines == ["t\tprediction", "a\t1.500000", "b\t-2.000000"]
    words = Examples((["a", "b\tc", "d"],), None, np.array([2, 1]))
    tags = Predictions(np.array([0, 1, -1]), None)
    lines = list(WordLayout(custom_task("tokens", ("words",), ("N", "V"))).lines(None, words, tags))
    assert lines == ["a\tN", "b c\tV", "", "d\t_", ""]


def test_two_splits_need_a_folder(toy_bert, tmp_path, capsys):
    labels = ("entailment", "neutral", "contradiction")
    for name in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        rows = [
            f"{i}\t{a}\t{a}" + ("" if "test" in name else f"\t{labels[i % 3]}") for i, a in enumerate(sentences(16))
        ]
        header = "index\tsentence1\tsentence2" + ("" if "test" in name else "\tgold_label")
        write_lines(tmp_path / "MNLI" / f"{name}.tsv", [header, *rows])
    run = tune(toy_bert, tmp_path / "runs", task="mnli", data_dir=str(tmp_path))
    status, _, err = call(capsys, run=run, split="test", output=tmp_path / "out.tsv")
    assert status == 2
    assert "give a folder" in err
    assert call(capsys, run=run, split="test", output=tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    assert {row[1] for row in table(tmp_path / "out" / "MNLI-mm.tsv")[1]} <= set(labels)


def test_written_tables_are_tables_again(own, tmp_path, capsys):
    columns = {"text": "good\tfilm", "tags": ["a", None], "half": "\ud800"}  # JSON can write halves of characters
    path = write_lines(tmp_path / "in.jsonl", [json.dumps(columns)])
    assert call(capsys, run=own, input=path, output=tmp_path)[0] == 0
    (row,) = read_rows(tmp_path / "in.predictions.tsv")
    assert row.fields["text"] == "good film"
    assert row.fields["tags"] == '["a", null]'
    assert row.fields["half"] == "\\ud800"


FORMULAS = ["=1+1", "+1", "-1", "@SUM(1)", '=HYPERLINK("http://a")', "- bad film"]


def test_texts_that_a_spreadsheet_takes_for_formulas_come_back_unchanged(own, tmp_path, capsys):
    """Predictions are read by programs, beside the texts that they are of: a quote in front would be another text."""
    rows = [json.dumps({"=id": text, "text": text}) for text in FORMULAS]
    path = write_lines(tmp_path / "in.jsonl", rows)
    status, _, err = call(capsys, run=own, input=path, output=tmp_path / "out.tsv")
    assert status == 0, err
    header, rows = table(tmp_path / "out.tsv")
    assert header == ["=id", "text", "prediction", "probability"]
    assert [row[:2] for row in rows] == [[text, text] for text in FORMULAS]


def test_words_and_classes_that_begin_as_formulas_come_back_unchanged():
    marks = ["=", "+", "-", "@", "-LRB-", "+x"]
    predictions = Predictions(np.arange(len(marks)), None)
    lines = WordLayout(custom_task("tokens", ("words",), tuple(marks))).lines(
        None, Examples((marks,), None, np.array([len(marks)])), predictions
    )
    assert list(lines) == [*(f"{mark}\t{mark}" for mark in marks), ""]
    predictions = Predictions(np.arange(len(marks)), np.ones(len(marks)))
    task = custom_task("classification", ("t",), tuple(marks))
    lines = list(TableLayout(task, "in").lines(None, Examples((marks,), None), predictions))
    assert lines[1:] == [f"{mark}\t{mark}\t1.000000" for mark in marks]


def test_the_server_is_given_its_own_values_whatever_a_spreadsheet_makes_of_them():
    """It knows no quote in front of a label; what the file says is what `GlueFiles.labels` says."""
    marks = ("=1", "+1", "-1", "@1")
    task = TASKS["mrpc"]
    assert task.glue is not None
    task = dataclasses.replace(task, classes=marks, glue=dataclasses.replace(task.glue, labels=marks))
    lines = list(ServerLayout(task).lines(None, Examples((marks, marks), None), Predictions(np.arange(4), None)))
    assert lines == ["index\tprediction", "0\t=1", "1\t+1", "2\t-1", "3\t@1"]

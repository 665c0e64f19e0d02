"""A token task on real sentences with the packaged MiniLM: which words does a comma or a full stop follow?

The sentences are Rotten Tomatoes' own, whose punctuation is taken out and asked for: labels that people wrote.
"""

import json

import pytest
from sklearn.metrics import accuracy_score

from tfmt import predict, train
from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.runs.records import read_runs

MARKS = {",": "COMMA", ".": "STOP"}


def take_out_punctuation(sentence):
    """The sentence's words, each with the mark that followed it."""
    words, tags = [], []
    for token in sentence.split():
        if token in MARKS:
            if words:
                tags[-1] = MARKS[token]
        elif token.isalnum():
            words.append(token)
            tags.append("NONE")
    return words, tags


def write_conll(path, sentences):
    blocks = ["\n".join(f"{word} {tag}" for word, tag in zip(*tagged, strict=True)) for tagged in sentences]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("punctuation")
    texts = read_rotten_tomatoes()[0]
    data = folder / "data"
    data.mkdir()
    sentences = {}
    for name, split, count in (("train", "train", 480), ("validation", "validation", 120)):
        tagged = [take_out_punctuation(sentence) for sentence in texts[split].texts[0]]
        sentences[name] = [tagged_sentence for tagged_sentence in tagged if len(tagged_sentence[0]) > 3][:count]
        write_conll(data / f"{name}.conll", sentences[name])
    # 24 tokens are too few for the longest sentences, so that some words are cut off.
    status = train.main(["--model=demo", "--task=custom", f"--data_dir={data}", "--task_type=tokens",
                         "--text_columns=0", "--label_column=1", "--mode=layernorm", "--learning_rate=1e-2",
                         "--epochs=1", "--max_length=24", f"--output_dir={folder / 'runs'}"])  # fmt: skip
    assert status == 0
    (record,) = (folder / "runs").glob("*/record.json")
    return folder, record.parent, json.loads(record.read_text()), sentences["validation"]


def test_every_word_counts(run):
    folder, _, record, sentences = run
    words = sum(len(words) for words, _ in sentences)
    told = record["result"]["words"]["validation"]
    assert record["result"]["examples"]["validation"] == len(sentences)
    assert told["words"] == words
    assert read_runs(folder / "runs").examples[0]["validation"] == words  # the N of tables
    assert 0 < told["cut_off"] < words
    assert record["proof"]["frozen_changed"] == 0


def test_predictions_give_the_score_of_the_record_again(run):
    folder, run_folder, record, sentences = run
    output = folder / "predicted.tsv"
    assert predict.main([f"--run={run_folder}", "--split=validation", f"--output={output}"]) == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    predicted = [line.split("\t") for line in lines if line and not line.startswith("word\t")]
    truth = [(word, tag) for words, tags in sentences for word, tag in zip(words, tags, strict=True)]
    assert [row[0] for row in predicted] == [word for word, _ in truth]
    score = accuracy_score([tag for _, tag in truth], [row[-1] for row in predicted])
    assert score == pytest.approx(record["result"]["score_last"], abs=1e-12)
    answered = [row for row in predicted if row[-1] in ("NONE", "COMMA", "STOP")]
    assert len(truth) - len(answered) == record["result"]["words"]["validation"]["cut_off"]

"""Runs on sentences whose labelled words leave no token: a batch of them has nothing to learn from."""

import numpy as np
import pytest

from tfmt import predict, train
from tfmt.runs.records import find_records
from tfmt.runs.runner import make_bench, prepare
from tfmt.spec import RunSpec

VANISHING = ("\u200b", "\ufe0f", "\u200d")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every fourth sentence holds nothing but words that BERT's cleaning removes."""
    folder = tmp_path_factory.mktemp("vanishing")
    for name, count in (("train", 16), ("validation", 8)):
        blocks = []
        for number in range(count):
            words = VANISHING[: 1 + number % 3] if number % 4 == 0 else ("good", "film", "\u200b", "plot")
            blocks.append("\n".join(f"{word}\t{'B-X' if word == 'film' else 'O'}" for word in words))
        (folder / f"{name}.conll").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def flags(toy_bert, data):
    return {
        "model": str(toy_bert), "task": "custom", "data_dir": str(data), "text_columns": ("0",), "label_column": "1",
        "task_type": "tokens", "max_length": 8, "batch_size": 1, "learning_rate": 1e-3, "epochs": 1,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["layernorm", "fisher"])
def test_a_run_completes_and_counts_its_words(flags, tmp_path, capsys, mode):
    more = ["--mask_fraction=0.5"] if mode == "fisher" else []
    given = [f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in flags.items()]
    status = train.main([*given, f"--mode={mode}", *more, f"--output_dir={tmp_path / 'runs'}"])
    assert status == 0, capsys.readouterr().err
    (record,), _ = find_records(tmp_path / "runs")
    assert record.status == "completed"
    assert np.isfinite(record.result.epochs[0].train_loss)
    # Of 12 sentences of four words one vanishes each; at 8 tokens the three others fit.
    assert record.result.words["train"] == {"words": 4 * 12 + 1 + 2 + 3 + 1, "cut_off": 0, "no_token": 12 + 7}
    assert record.result.words["validation"] == {"words": 4 * 6 + 1 + 2, "cut_off": 0, "no_token": 6 + 3}
    output = tmp_path / "out.tsv"
    run = tmp_path / "runs" / record.run_id
    assert predict.main([f"--run={run}", "--split=validation", f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "9 words of which the tokenizer keeps no character got no prediction" in printed
    assert "max_length" not in printed


def test_a_batch_without_a_labelled_word_adds_nothing(flags, tmp_path):
    spec = RunSpec.make(**flags, mode="layernorm")
    bench = make_bench(prepare(spec, tmp_path))
    bench.set_up(spec, 4)
    before = bench.read_selected()
    empty = {"input_ids": [[2, 3]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]], "labels": [[-100, -100]]}
    assert float(bench.train_step({name: np.array(value, np.int32) for name, value in empty.items()})) == 0.0
    for path, value in bench.read_selected().items():
        np.testing.assert_array_equal(value, before[path])

"""README's Python example, as it stands: it runs from end to end, and only what it prints is on the terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
NAME = '"bert-base-uncased"'


def test_the_python_example_runs_without_greetings(make_toy_bert, tmp_path):
    folder = make_toy_bert(tmp_path / "bert", max_position_embeddings=128)
    section = re.search(r"^## In Python\n(.*?)^## ", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    block = re.search(r"(?:^(?:    .*)?\n)+", section[1].lstrip("\n"), re.MULTILINE)[0]
    code = re.sub("(?m)^    ", "", block)
    assert code.count(NAME) == 1
    quiet = {"TF_CPP_MIN_LOG_LEVEL", "TF_USE_LEGACY_KERAS", "TRANSFORMERS_VERBOSITY", "USE_TORCH"}
    done = subprocess.run(
        [sys.executable, "-c", code.replace(NAME, repr(str(folder)))], capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name not in quiet},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    assert "tuned     64 weights" in done.stdout  # 16 in each of four LayerNorms
    assert "Epoch 2/2" in done.stdout

"""Runs whose events the recipes of docs/tracking.md carry on: three of a toy BERT, one of which diverges.

Usage: python tests/tracking/make_runs.py FOLDER
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tfmt import quiet
from tfmt.sweep import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import write_toy_bert, write_toy_mrpc

if __name__ == "__main__":
    quiet.set_verbosity(0)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    with tempfile.TemporaryDirectory() as made:
        model, data = write_toy_bert(Path(made) / "bert"), write_toy_mrpc(Path(made) / "glue")
        shared = [f"--model={model}", f"--data_dir={data}", "--task=mrpc", "--max_length=32", "--epochs=3",
                  "--workers=0", f"--output_dir={sys.argv[1]}"]  # fmt: skip
        status = main([*shared, "--mode=layernorm,frozen", "--learning_rate=1e-2"])
        sys.exit(status or main([*shared, "--mode=layernorm", "--learning_rate=1e38"]))

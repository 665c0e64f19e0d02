"""Runs the recipes of docs/tracking.md exactly as they stand there, and compares what trackers hold with the records.

Usage, in an environment with the trackers and TensorBoard, without tfmt: python tests/tracking/check_recipes.py FOLDER
"""

import importlib.metadata
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"


def extract_scripts(folder):
    """Writes each script of the page under the name that stands before it."""
    scripts = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name, code in scripts:
        (folder / name).write_text(code, encoding="utf-8")
    return [name for name, _ in scripts]


def expected_curves(record):
    """{tag: {epoch: value}} of what the record says, too."""
    epochs = record["result"]["epochs"]
    curves = {"loss/train": {epoch["epoch"]: epoch["train_loss"] for epoch in epochs}}
    for split, metrics in (epochs[0]["metrics"] if epochs else {}).items():
        for name in metrics:
            curves[f"{split}/{name}"] = {epoch["epoch"]: epoch["metrics"][split][name] for epoch in epochs}
    return {tag: curve for tag, curve in curves.items() if curve}


def read_mlflow(folder, record):
    """What MLflow holds of a run: its settings, and {tag: {number: value}}."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = mlflow.search_runs(
        experiment_names=["tfmt"], filter_string=f"attributes.run_name = '{record['run_id']}'", output_format="list"
    )
    assert run.data.tags["status"] == record["status"]
    client = mlflow.MlflowClient()
    curves = {}
    for tag in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, tag)
        curves[tag] = {metric.step: metric.value for metric in history}
        assert len(curves[tag]) == len(history), tag
    return run.data.params, curves


def read_wandb(folder, record):
    """The same of Weights & Biases, from the log of records that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "wandb").glob(f"offline-run-*-{record['run_id']}/*.wandb")
    config, curves = {}, {}
    for content in log_records(path.read_bytes()):
        entry = Record.FromString(content)
        if entry.HasField("run"):
            config |= {item.key: str(json.loads(item.value_json)) for item in entry.run.config.update}
        elif entry.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            number = row.get("step", row.get("epoch"))
            for tag, value in row.items():
                if tag not in ("step", "epoch") and not tag.startswith("_"):
                    assert number not in curves.setdefault(tag, {}), tag
                    curves[tag][number] = value
    return config, curves


def log_records(content):
    """The records of a log of LevelDB's kind behind 7 bytes: blocks of 32 KiB, of fragments with 7 bytes of header."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            yield whole
            whole = b""


def read_trackio(folder, record):
    """The same of Trackio."""
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [name for name in SQLiteStorage.get_runs("tfmt") if name == record["run_id"]]
    config = {name: str(value) for name, value in SQLiteStorage.get_run_config("tfmt", run).items()}
    curves = {}
    for row in SQLiteStorage.get_logs("tfmt", run):
        for tag, value in row.items():
            if tag not in ("step", "timestamp"):
                assert row["step"] not in curves.setdefault(tag, {}), tag
                curves[tag][row["step"]] = value
    return config, curves


READERS = {"mlflow": read_mlflow, "wandb": read_wandb, "trackio": read_trackio}


def check_run(record, settings, curves):
    """Compares what a tracker holds with the record."""
    for name, value in record["spec"].items():
        assert value is None or settings[name] == str(value), (name, settings.get(name), value)
    for tag, curve in expected_curves(record).items():
        assert curves[tag].keys() == curve.keys(), (tag, curves[tag], curve)
        assert all(math.isclose(curves[tag][at], value, rel_tol=1e-6) for at, value in curve.items()), tag
    assert curves["tuned"] == {0: record["parameters"]["tuned"]}
    if record["status"] == "completed":
        steps = record["cost"]["steps"]
        assert list(map(int, curves["steps/loss"])) == list(range(1, steps + 1))
        assert curves["steps/learning_rate"].keys() == curves["steps/loss"].keys()
        last = curves["score_best"][record["spec"]["epochs"]]
        assert math.isclose(last, record["result"]["score_best"], rel_tol=1e-6)


def main(runs):
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*/record.json"))]
    assert sorted(record["status"] for record in records) == ["completed", "completed", "diverged"]
    for package in ("tfmt", "tensorflow"):
        assert importlib.util.find_spec(package) is None, f"{package} is in this environment"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = extract_scripts(folder)
        assert names == ["tfmt_events.py", *(f"to_{tracker}.py" for tracker in READERS)], names
        offline = {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
        for tracker, read in READERS.items():
            for _ in range(2):  # the second time there is nothing new
                command = [sys.executable, f"to_{tracker}.py", str(runs.resolve())]
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stdout + done.stderr
            for record in records:
                check_run(record, *read(folder, record))
            version = importlib.metadata.version(tracker)
            print(f"{tracker} {version}: {len(records)} runs as their records say")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

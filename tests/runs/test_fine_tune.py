"""tfmt.fine_tune is tfmt-train in Python: the same run in the same folder, once."""

import tfmt
from tfmt import memory, train


def test_a_run_from_python_is_the_commands(toy_bert, toy_glue, tmp_path, capsys):
    settings = {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "layernorm",
                "max_length": 32, "epochs": 1}  # fmt: skip
    spec = tfmt.RunSpec.make(**settings)
    kept = memory.keep_memory.cache_info()
    record = tfmt.fine_tune(spec, tmp_path, quiet=True)
    assert memory.keep_memory.cache_info() == kept  # a library call leaves the process's memory alone
    assert isinstance(record, tfmt.Record)
    assert (record.status, record.proof.frozen_changed, len(record.result.epochs)) == ("completed", 0, 1)
    path = tmp_path / record.run_id / "record.json"
    written = path.stat().st_mtime_ns
    assert train.main([*(f"--{name}={value}" for name, value in settings.items()), f"--output_dir={tmp_path}"]) == 0
    assert f"{path.parent} holds this run already" in capsys.readouterr().err
    assert tfmt.fine_tune(spec, tmp_path) == record
    assert path.stat().st_mtime_ns == written

"""The files for Slurm in docs/cluster.md: bash reads them, and their commands do what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"
*SCRIPTS, RAY = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)
STUBS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do echo "srun $1"; shift; done\n"$@"',
    "scontrol": 'echo "scontrol $@"',
}


def call(script, folder, sweep, share=2, **more):
    """Runs a script as task 2 of 4, with programs of ours in place of Slurm's."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name, body in (STUBS | more | {"tfmt-sweep": sweep}).items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "job").write_text(script)
    told = {"SLURM_SUBMIT_DIR": folder, "SLURM_ARRAY_TASK_ID": share, "SLURM_ARRAY_TASK_COUNT": 4,
            "SLURM_ARRAY_JOB_ID": 7, "SLURM_JOB_ID": 30006, "SLURM_JOB_NUM_NODES": 4, "SLURM_JOB_NODELIST": "n[1-4]",
            "SLURM_CPUS_PER_TASK": 3, "PATH": f"{folder}:{os.environ['PATH']}"}  # fmt: skip
    environment = os.environ | {name: str(value) for name, value in told.items()}
    return subprocess.run(["bash", folder / "job"], env=environment, capture_output=True, text=True)


def test_there_is_one_for_gpus_and_one_for_cpus():
    assert ["--gres=gpu" in script for script in SCRIPTS] == [True, False]


@pytest.mark.parametrize("script", SCRIPTS, ids=["gpu", "cpu"])
def test_scripts_run_a_share_of_the_sweep(script, tmp_path):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    done = call(script, tmp_path, f'echo "$@"\nexec {sys.executable} -m tfmt.sweep "$@" --dry_run')
    assert done.returncode == 0, done.stderr
    assert "srun --cpus-per-task=3" in done.stdout
    assert "--shard=2/4 --leave" in done.stdout
    assert "runs      1,512 " in done.stdout
    assert "scontrol" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=["gpu", "cpu"])
@pytest.mark.parametrize(("end", "status"), [("kill -USR1 $$", 138), ("kill -TERM $$", 143), ("exit 1", 1)])
def test_scripts_go_on_in_the_queue_where_their_time_is_over(script, tmp_path, end, status):
    done = call(script, tmp_path, end)
    assert done.returncode == status
    assert ("scontrol requeue 7_2" in done.stdout) == (status == 138)


# As Slurm and Ray answer the job with whole nodes; the head takes no time to start.
MORE = {"scontrol": "printf '%s\\n' n1 n2 n3 n4", "hostname": "echo 10.0.0.1 172.17.0.1", "sleep": "exit 0",
        "ray": 'echo "ray $@"'}  # fmt: skip


def test_job_of_whole_nodes_starts_a_head_and_three_more_and_one_sweep(tmp_path):
    subprocess.run(["bash", "-n"], input=RAY, text=True, check=True)
    done = call(RAY, tmp_path, 'echo "sweep $@"', **MORE)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    heads, others = ([line for line in lines if line.startswith("ray start") and part in line]
                     for part in ("--head", "--address"))  # fmt: skip
    assert len(heads) == len(others) == 1  # of one step on three nodes
    assert "--node-ip-address=10.0.0.1 --port=20006" in heads[0]
    assert "--num-cpus=3 --num-gpus=4" in heads[0]
    assert "--address=10.0.0.1:20006" in others[0]
    assert {"srun --nodelist=n1", "srun --ntasks=3", "srun --exclude=n1"} <= set(lines)
    (sweep,) = (line for line in lines if line.startswith("sweep"))
    assert "--ray=10.0.0.1:20006 --require_gpu" in sweep


def test_job_of_whole_nodes_hands_its_sweep_the_signal_and_waits_for_it(tmp_path):
    ends = "trap 'echo checkpoint; trap - USR1; kill -USR1 $$' USR1\nkill -USR1 $PPID\nwhile :; do /bin/sleep 0.1; done"
    done = call(RAY, tmp_path, ends, **MORE)
    assert "checkpoint" in done.stdout
    assert done.returncode == 138

"""A worker process beside its sweep."""

import os
import signal
import subprocess
import sys

# Workers are spawned, and so need a file that they can import their body from.
SWEEP = """
import multiprocessing, os, time
from tfmt.study.worker import stop_with_sweep

def work():
    stop_with_sweep()
    print(os.getpid(), flush=True)
    time.sleep(120)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


def test_worker_stops_when_its_sweep_has_died(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    with subprocess.Popen([sys.executable, tmp_path / "sweep.py"], stdout=subprocess.PIPE) as sweep:
        worker = int(sweep.stdout.readline())
        os.kill(worker, 0)
        sweep.send_signal(signal.SIGKILL)
        assert sweep.wait() == -signal.SIGKILL
        assert not sweep.stdout.read()  # ends when the worker, which shares the pipe, does

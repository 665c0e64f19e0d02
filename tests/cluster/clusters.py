"""Ray clusters of this machine alone, and sweeps as processes of their own that are watched line by line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

# Before Ray is imported: nothing leaves this machine.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
MEGABYTE = 1 << 20


class Ring:
    """A cluster: a head without CPUs, and nodes with one each.

    Args:
      environment: of its head.
    """

    def __init__(self, **environment):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 80 * MEGABYTE, "include_dashboard": False}
        with environed(**environment):
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address

    def add(self, name, **environment):
        """Starts a node with these environment variables; its raylet."""
        with environed(**environment):
            node = self._cluster.add_node(num_cpus=1, object_store_memory=100 * MEGABYTE, node_name=name)
        return node.all_processes["raylet"][0].process

    def clear(self):
        """Ends all nodes."""
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node)

    def kill_head(self, *kinds):
        """Kills the head's processes, or those of some kinds."""
        for kind, told in self._cluster.head_node.all_processes.items():
            for each in told if kind in kinds or not kinds else []:
                each.process.kill()
                each.process.wait()

    def close(self):
        """Ends all of it."""
        self._cluster.shutdown()


@contextmanager
def environed(**environment):
    """Inside, processes that start have these variables."""
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def actors_of(raylet):
    """The process numbers of a node's actors."""
    return [each for each in _children(raylet.pid) if "ray::Hand" in _told(each)]


def workers_of(raylet):
    """The processes of a node that compute."""
    return [child for actor in actors_of(raylet) for child in _children(actor.pid) if "spawn_main" in _told(child)]


def _children(pid):
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def _told(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(what, seconds, told=str):
    """Waits until something is true; what it is, and when that was seen."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, told() or f"nothing came of it for {seconds} s"
        time.sleep(0.02)
    return found


class Command:
    """`tfmt-sweep` as a process.

    Args:
      folder: its working folder.
      flags: without their dashes.
    """

    def __init__(self, folder, *, start=(sys.executable, "-m", "tfmt.sweep"), **flags):
        self.begun = time.monotonic()
        given = [f"--{name}={value}" for name, value in flags.items()]
        self.process = subprocess.Popen(
            [*start, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        self.lines = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream,)) for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream):
        for line in stream:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def told(self):
        """All that it has said, with the seconds since it was started."""
        return "\n".join(f"{moment - self.begun:7.2f} {line}" for moment, line in list(self.lines))

    def see(self, pattern, seconds):
        """Waits for a line; when it came."""

        def find():
            return next((moment for moment, line in list(self.lines) if re.search(pattern, line)), None)

        return wait_until(find, seconds, lambda: f"no {pattern!r} in\n{self.told}")

    def end(self, seconds):
        """Waits for its end; its status."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end:\n{self.told}") from None
        for reader in self._readers:
            reader.join(10)
        return status

    def send(self, number):
        """Sends a signal; when."""
        self.process.send_signal(number)
        return time.monotonic()


def freeze(*processes):
    """Stops processes where they are."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)


def wake(*processes):
    """Lets them go on."""
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)


def bits(folder):
    """What two sweeps of one grid have to agree on, by run; of each run there is one record."""
    found = {}
    for path in sorted(Path(folder).glob("*/record.json")):
        record = json.loads(path.read_text())
        for epoch in record["result"]["epochs"]:
            for name in [name for name in epoch if "seconds" in name]:
                del epoch[name]
        names = ("status", "result", "proof", "change", "predictions_sha256", "tuned_sha256", "warnings")
        found[record["run_id"]] = {name: record[name] for name in names}
    return found


def resumed(folder):
    """{run: how often it went on from a checkpoint}."""
    records = [json.loads(path.read_text()) for path in Path(folder).glob("*/record.json")]
    return {record["run_id"]: record["cost"]["resumed"] for record in records}


def is_whole(run):
    """Whether a run's folder has what an ended run has, and nothing else."""
    names = {re.sub(r"^events\..*", "events", path.name) for path in run.iterdir()}
    return names == {"spec.json", "record.json", "predictions.safetensors", "selection.safetensors",
                     "tuned.safetensors", "events"}  # fmt: skip

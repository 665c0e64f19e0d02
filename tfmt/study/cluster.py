"""A Ray cluster: whether there is one, what its machines have, and actors on them.

An actor is owned by the sweep's process and ends with it. It is never restarted by Ray, nor is a call made twice: what
becomes of a run is decided by the sweep alone. Nothing here imports Ray before a cluster is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmt import signals
from tfmt.errors import RequestError, RunError
from tfmt.streams import Tolerant
from tfmt.study.hand import ORPHAN_SECONDS, Hand, Process
from tfmt.study.places import Place, visible_cores

LOG_FILE = "ray.log"  # in the folder of the runs' folders: what Ray says of its machines
_STORE_BYTES = 256 << 20  # of what travels; Ray would take a third of the memory
_PROBE_SECONDS = 5.0  # for an answer of a port
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # as a client begins: no settings


class LostError(Exception):
    """An actor, or its machine, is gone.

    Attributes:
      unfit: its machine could not even make it.
    """

    def __init__(self, told: str, *, unfit: bool = False) -> None:
        super().__init__(told)
        self.unfit = unfit


# ---- connecting ------------------------------------------------------------------------------------------------------


def check_address(address: str) -> None:
    """Checks how a cluster is named, without asking anybody.

    Raises:
      RequestError: it is none of `auto`, `local`, `HOST:PORT`.
    """
    if address.startswith("ray://"):
        raise RequestError(
            f"--ray={address}: Ray Client is not for long work, as it notices a dead sweep late; run the sweep on a "
            "machine of the cluster with --ray=auto, or give the head's HOST:PORT, as 10.0.0.1:6379"
        )
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and port.isascii()) or not 0 < int(port) < 65536 or "/" in address:
        raise RequestError(f"--ray={address}: must be auto, local or the head's HOST:PORT, as 10.0.0.1:6379")


def _import_ray() -> Any:
    # Ray tells its makers of each cluster, unless it is told not to before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise RequestError("--ray needs the package ray: pip install 'tfmt[cluster]'") from None


def _find_current() -> str:
    """The address of the cluster that this machine is part of, where Ray notes it."""
    if (told := os.environ.get("RAY_ADDRESS", "auto")) != "auto":
        return told
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except (OSError, ValueError):
        raise RequestError(
            "--ray=auto: this machine is in no Ray cluster; start one with `ray start --head --port=6379`, or give "
            "--ray=HOST:PORT, or --ray=local for this machine alone"
        ) from None


def _probe(address: str) -> str:
    """Why no head answers at an address; "" where one does.

    A head speaks HTTP/2 and begins with its settings. A port of something else, or of a head that is frozen, is open
    as well.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS) as asked:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return ""
            asked.sendall(_HTTP2)
            begun = asked.recv(9, socket.MSG_WAITALL)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "" if begun[3:4] == b"\4" else "something else than Ray"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
      node_id: Ray's.
      name: as people know it.
      cpus, gpus: what it has.
    """

    node_id: str
    name: str
    cpus: float
    gpus: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> Node:
        """From what `ray.nodes` tells."""
        resources = told["Resources"]
        host, address = told.get("NodeManagerHostname") or "", told.get("NodeName") or told["NodeManagerAddress"]
        name = host if address in ("", host) or address == told["NodeManagerAddress"] else address
        return cls(told["NodeID"], name or address, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


@dataclass(frozen=True)
class Wish:
    """What each run is to have.

    Attributes:
      gpus: a part of one, or some.
      cpus: also the threads of its operations.
    """

    gpus: float
    cpus: int

    def places(self, node: Node) -> int:
        """How many runs a machine has room for."""
        room = int(node.cpus // self.cpus)
        return min(room, _share_gpus(node, self.gpus)) if self.gpus else room


def _share_gpus(node: Node, gpus: float) -> int:
    """How many runs the GPUs of a machine are enough for; a part of one is of one alone."""
    if gpus < 1:
        return int(node.gpus) * int(1 / gpus + 1e-9)  # 1 / 0.1 is below 10 in floating point
    return int(node.gpus // gpus)


def check_wish(gpus_per_run: float | None, replicas: int, batch_size: int) -> None:
    """Checks `--gpus_per_run` by itself.

    Raises:
      RequestError: it cannot be had of any machine, is less than `--replicas`, or does not share a batch evenly.
    """
    if gpus_per_run is None:
        return
    if not 0 <= gpus_per_run < math.inf or (gpus_per_run > 1 and gpus_per_run != int(gpus_per_run)):
        raise RequestError(f"--gpus_per_run={gpus_per_run:g}: must be 0, a part of one GPU as 0.5, or a whole number")
    if gpus_per_run and replicas > max(gpus_per_run, 1):
        raise RequestError(f"--gpus_per_run={gpus_per_run:g}: --replicas={replicas} needs as many GPUs")
    if gpus_per_run > 1 and not replicas and batch_size % int(gpus_per_run):
        raise RequestError(
            f"--batch_size={batch_size}: the {gpus_per_run:g} GPUs of a run share a batch evenly; give --replicas"
        )


def make_wish(nodes: Sequence[Node], gpus_per_run: float | None, cpus_per_run: int, replicas: int) -> Wish:
    """What each run gets, and that some machine has it: else it would wait for ever in silence.

    Args:
      nodes: the machines.
      gpus_per_run: None is one a replica where some machine has GPUs, else none.
      cpus_per_run: 0 is a GPU's share of the CPUs of its machine, or 1 without GPUs.
      replicas: of each run; 0 leaves it to the devices.

    Raises:
      RequestError: no machine has so much.
    """
    if gpus_per_run is None:
        gpus_per_run = float(max(replicas, 1)) if any(node.gpus for node in nodes) else 0.0
    wide = [node for node in nodes if node.gpus >= gpus_per_run]
    if not wide:
        raise RequestError(f"--gpus_per_run={gpus_per_run:g}: {_tell_most(nodes, 'gpus', 'GPU')}")
    if not cpus_per_run:
        shares = [int(node.cpus // max(_share_gpus(node, gpus_per_run), 1)) for node in wide] if gpus_per_run else [1]
        cpus_per_run = max(min(shares), 1)
    wish = Wish(gpus_per_run, cpus_per_run)
    if not any(map(wish.places, nodes)):
        with_gpus = " beside as many GPUs" if gpus_per_run else ""
        raise RequestError(f"--cpus_per_run={cpus_per_run}: {_tell_most(wide, 'cpus', 'CPU')}{with_gpus}")
    return wish


def _tell_most(nodes: Sequence[Node], what: str, name: str) -> str:
    if not nodes:
        return "the cluster has no machine"
    most = max(nodes, key=lambda node: getattr(node, what))
    return f"no machine of the cluster has more than {getattr(most, what):g} ({most.name}); take fewer {name}s"


def find_cluster(address: str) -> str:
    """Where a cluster is that answers: `local` or HOST:PORT. Ray itself would wait for minutes.

    Args:
      address: `auto`, `local` or `HOST:PORT`.

    Raises:
      RequestError: there is none, or Ray is not installed.
    """
    check_address(address)
    if address == "local":
        _import_ray()
        return address
    found = _find_current() if address == "auto" else address
    check_address(found)
    if why := _probe(found):
        raise RequestError(
            f"--ray={address}: nobody answers at {found} ({why}); see on the head whether `ray status` does"
        )
    host, _, port = found.rpartition(":")
    if host in ("127.0.0.1", "localhost") and _probe(f"{_own_address()}:{port}"):
        # Ray takes the machine's own address for this one, where nobody answers, unless it is told not to.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    _import_ray()
    return found


def _own_address() -> str:
    """The address by which other machines know this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("8.8.8.8", 53))  # sends nothing
            return str(asked.getsockname()[0])
        except OSError:  # there is no way out of here
            return "127.0.0.1"


class Cluster:
    """A connection to a Ray cluster; a context manager that ends it, and with it all actors.

    Args:
      address: from `find_cluster`.
      log: the file for what Ray says; its folder exists.

    Raises:
      RequestError: it is not for this process.
    """

    def __init__(self, address: str, log: Path) -> None:
        self._ray = _import_ray()
        self.address, self._log = address, log
        options: dict[str, Any] = {}
        if address == "local":
            options = {
                "num_cpus": len(visible_cores()), "include_dashboard": False, "object_store_memory": _STORE_BYTES
            }  # fmt: skip
        self._restore = self._divert()
        handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
        try:
            self._quieten()
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            self._restore()
            raise RequestError(f"--ray={address}: {self._explain(error)}") from None
        finally:
            for number, handler in handlers.items():  # Ray takes SIGTERM for itself
                signal.signal(number, handler)
        self._node_id = self._ray.get_runtime_context().get_node_id()

    def _explain(self, error: Exception) -> str:
        """Why Ray does not connect, and what to do."""
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        with contextlib.suppress(OSError):
            if b"InvalidAuthToken" in self._log.read_bytes()[self._begun :]:
                return (
                    "the cluster asks for a token, and this process has none or another one; give RAY_AUTH_MODE=token "
                    "and the head's token in ~/.ray/auth_token"
                )
        if self.address == "local":
            return told
        return f"{told}; is this machine part of it? `ray start --address={self.address} --num-cpus=0` makes it so"

    def _divert(self) -> Callable[[], None]:
        """Sends into the log what native code writes to file 2; what is said here goes where that went before.

        Returns:
          What puts both back.
        """
        before, log = sys.stderr, self._log.open("ab")
        self._begun = log.tell()
        before.flush()
        said = os.fdopen(os.dup(2), "w", buffering=1, encoding=before.encoding, errors=before.errors)
        os.dup2(log.fileno(), 2)
        log.close()
        sys.stderr = Tolerant(said) if isinstance(before, Tolerant) else said

        def restore() -> None:
            sys.stderr = before
            with contextlib.suppress(OSError):  # nobody reads it any more
                said.flush()
            os.dup2(said.fileno(), 2)
            with contextlib.suppress(OSError):
                said.close()

        return restore

    def _quieten(self) -> None:
        """Sends what Ray says into a file, in spite of `log_to_driver`: its lines on dead machines among it."""
        worker: Any = importlib.import_module("ray._private.worker")
        logger = logging.getLogger("ray")
        logger.propagate = False
        handler = logging.FileHandler(self._log, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.handlers[:] = [handler]

        def note(data: dict[str, Any], *_: Any, **__: Any) -> None:
            with contextlib.suppress(OSError):
                logger.error("%s: %s", data.get("pid", ""), "\n".join(map(str, data.get("lines", ()))))

        if hasattr(worker, "print_to_stdstream"):
            worker.print_to_stdstream = note

    def nodes(self) -> list[Node]:
        """The machines that live and have something to compute with.

        Raises:
          RunError: this machine is none of those that live. What it asks for is then never done.
        """
        living = [told for told in self._ray.nodes() if told["Alive"]]
        if self._node_id not in {told["NodeID"] for told in living}:
            raise RunError("this machine is no longer part of the cluster; let it join, and run the same command again")
        found = [Node.of(told) for told in living]
        return sorted((node for node in found if node.cpus), key=lambda node: (node.name, node.node_id))

    def answers(self) -> bool:
        """Whether the head does."""
        return self.address == "local" or not _probe(self.address)

    def make_hand(self, node: Node, wish: Wish, verbosity: int, after: Process | None) -> Any:
        """An actor on a machine; it lives as soon as that has room."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = None if wish.gpus else ("-1",)
        place = Place(gpus, threads=wish.cpus, orphan_seconds=ORPHAN_SECONDS, needs_gpu=wish.gpus > 0)
        # The worker is a child of the actor and has to outlive it for its checkpoint.
        environment = {"RAY_kill_child_processes_on_worker_exit": "0"}
        actor = self._ray.remote(Hand).options(
            num_cpus=wish.cpus, num_gpus=wish.gpus, max_restarts=0, max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            runtime_env={"env_vars": environment},
        )  # fmt: skip
        return actor.remote(place, verbosity, after)

    def ask(self, actor: Any, seconds: float, method: str, *arguments: Any) -> Any:
        """Calls a method of a hand, and raises what that raises.

        Raises:
          LostError: there is no answer, and will be none.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(getattr(actor, method).remote(*arguments), timeout=seconds)
        except exceptions.GetTimeoutError:
            raise LostError(f"its actor gave no answer for {seconds:.0f} s") from None
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            raise _lost(error) from None

    def wait_for(self, reference: Any, seconds: float) -> Any:
        """What a call gives, or None where it has not come yet; raises as `ask`."""
        ready, _ = self._ray.wait([reference], timeout=seconds)
        if not ready:
            return None
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from None

    def kill(self, actor: Any) -> None:
        """Ends an actor at once."""
        with contextlib.suppress(Exception):  # it is gone, or the cluster is
            self._ray.kill(actor, no_restart=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        self._restore()
        with contextlib.suppress(OSError):
            if not self._log.stat().st_size:
                self._log.unlink()


def _lost(error: Exception) -> LostError:
    """What has become of an actor, in a few words; all that Ray says of it goes into the log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    logging.getLogger("ray").error("tfmt: %s", " ".join(lines))
    if "creation task" in lines[0]:
        return LostError(lines[-1][:200], unfit=True)
    if any("node has died" in line for line in lines):
        return LostError("its machine is gone")
    return LostError("its actor does not answer" if "unavailable" in lines[0] else "its actor has died")

"""Where a run computes, and every choice that follows from the kind of device.

What is said of GPUs here was read in TensorFlow's sources and documentation; `make gpu-check` tries it on one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmt.errors import RequestError
from tfmt.words import counted

# Tokens with padding that one device evaluates at a time. On a CPU small batches stay in the caches; a GPU wants work.
_EVALUATION_TOKENS = {"CPU": 2048, "GPU": 16384}
# Steps that may be under way before their losses are read. On a CPU a loss is there when its step returns.
_LOSSES_AHEAD = {"CPU": 1, "GPU": 64}


@dataclass(frozen=True)
class Devices:
    """The devices of a run, all of one kind, under one MirroredStrategy.

    Attributes:
      strategy: the strategy.
      kind: `CPU` or `GPU`.
    """

    strategy: Any
    kind: str

    @property
    def replicas(self) -> int:
        """How many devices."""
        return self.strategy.num_replicas_in_sync

    @property
    def evaluation_tokens(self) -> int:
        """Tokens with padding of one evaluation batch, over all devices."""
        return _EVALUATION_TOKENS[self.kind] * self.replicas

    @property
    def losses_ahead(self) -> int:
        """How many steps may be under way before their losses are read."""
        return _LOSSES_AHEAD[self.kind]

    @property
    def names(self) -> list[str]:
        """The devices by kind and number, a GPU with its model's name."""
        names = []
        for device in self.strategy.extended.worker_devices:
            kind, number = device.split("device:")[-1].split(":")
            if kind == "GPU":
                physical = tf.config.list_physical_devices("GPU")[int(number)]
                details = tf.config.experimental.get_device_details(physical)
                names.append(f"GPU:{number} {details.get('device_name', '')}".strip())
            else:
                names.append(f"{kind}:{number}")
        return names

    @property
    def described(self) -> str:
        """The devices in words: `1 CPU device, 2 threads`, or `GPU 0 (NVIDIA A100), GPU 1 (NVIDIA A100)`."""
        if self.kind == "CPU":
            return f"{_count(self.replicas, 'CPU device')}, {_count(threads_in_use(), 'thread')}"
        places = (name.removeprefix("GPU:").partition(" ") for name in self.names)
        return ", ".join(f"GPU {number}" + (f" ({model})" if model else "") for number, _, model in places)

    def check_jit(self, jit_compile: str) -> bool:
        """Whether XLA compiles the steps.

        Raises:
          RequestError: it is asked for on several devices. On CPUs TensorFlow cannot do it; on GPUs nobody has tried
            what it makes of sums of sparse gradients over devices.
        """
        if jit_compile == "on" and self.replicas > 1:
            raise RequestError("--jit_compile=on: XLA compiles steps of one device alone; use --replicas=1")
        return jit_compile == "on"

    # ---- memory ----------------------------------------------------------------------------------------------------

    def forget_peaks(self) -> None:
        """Lets the peaks of memory start anew, so that each run of a process has its own."""
        with contextlib.suppress(OSError):  # where the system cannot, the peak stays the process's
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        for name in self._gpus():
            tf.config.experimental.reset_memory_stats(name)

    def peak_gpu_mb(self) -> float | None:
        """Largest memory that TensorFlow held on one GPU since `forget_peaks`, in MB; None on CPUs."""
        peaks = [tf.config.experimental.get_memory_info(name)["peak"] for name in self._gpus()]
        return max(peaks) / 2**20 if peaks else None

    def _gpus(self) -> list[str]:
        return [f"GPU:{index}" for index in range(self.replicas)] if self.kind == "GPU" else []


def peak_rss_mb() -> float:
    """Largest memory of this process since `Devices.forget_peaks`, in MB; where the system cannot tell, of all time."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")):
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def make_devices(replicas: int, precision: str = "float32", *, threads: int = 0) -> Devices:
    """A MirroredStrategy over every GPU (memory growth on), else over CPU devices, with operations that repeat exactly.

    Args:
      replicas: 0 for every GPU or else one CPU; k for k GPUs, or k logical CPU devices where there is no GPU.
      precision: what will be computed in; see `set_tensor_float`.
      threads: threads of one operation on a CPU; 0 leaves TensorFlow's choice, every core of this process. Results
        differ in their last bits between numbers of threads, so a record states it.

    Raises:
      RequestError: fewer GPUs than asked for, TensorFlow already runs with another number of CPU devices, or other
        several GPUs were used in this process before.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    set_tensor_float(precision)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        count = replicas or len(gpus)
        if count > len(gpus):
            raise RequestError(f"--replicas={replicas}: this machine has {counted(len(gpus), 'GPU')}")
        for gpu in gpus:
            # Too late where TensorFlow has used the GPU before, as after `load_bert`: it then holds all of its memory.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
        return Devices(_mirrored(tuple(f"/gpu:{index}" for index in range(count))), "GPU")
    count = replicas or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    have = tf.config.get_logical_device_configuration(cpu)
    if count > (len(have) if have else 1):
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        except RuntimeError:
            raise RequestError(
                f"--replicas={replicas}: TensorFlow already runs with fewer CPU devices; start a new process"
            ) from None
    return Devices(_mirrored(tuple(f"/cpu:{index}" for index in range(count))), "CPU")


_GPU_REMEDY = "is the driver there (nvidia-smi), and a TensorFlow with CUDA (pip install 'tensorflow[and-cuda]')?"


def find_missing_gpus() -> str:
    """What is wrong where CUDA_VISIBLE_DEVICES names more GPUs than TensorFlow finds; empty where nothing is."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = list(itertools.takewhile(lambda part: part not in ("", "-1"), map(str.strip, asked.split(","))))
    found = len(tf.config.list_physical_devices("GPU"))
    if found >= len(named):
        return ""
    gpus = _count(len(named), "GPU")
    return f"CUDA_VISIBLE_DEVICES={asked} names {gpus}, and TensorFlow finds {found or 'none'}: {_GPU_REMEDY}"


def require_gpu() -> None:
    """Checks that TensorFlow finds a GPU, and every one that CUDA_VISIBLE_DEVICES names.

    Raises:
      RequestError: it does not.
    """
    if missing := find_missing_gpus():
        raise RequestError(f"--require_gpu: {missing}")
    if not tf.config.list_physical_devices("GPU"):
        raise RequestError(f"--require_gpu: TensorFlow finds no GPU: {_GPU_REMEDY}")


_COLLECTIVE: list[tuple[str, ...]] = []  # the one set of several GPUs of this process


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> Any:
    """One strategy for one set of devices.

    TensorFlow numbers its collectives from 1 in every strategy, so that in one process it takes strategies over the
    same CPU devices, or over other sets of devices, for each other and fails. On CPUs and on one GPU sums therefore go
    through one device, without collectives; several GPUs have them, and there is one such set in a process.
    """
    if devices[0].startswith("/cpu") or len(devices) == 1:
        return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    if _COLLECTIVE:
        raise RequestError(
            f"--replicas={len(devices)}: this process has used {len(_COLLECTIVE[0])} GPUs together, and TensorFlow "
            "would take the two for each other; start a new process"
        )
    _COLLECTIVE.append(devices)
    return tf.distribute.MirroredStrategy(devices)


def set_tensor_float(precision: str) -> None:
    """Lets GPUs from Ampere on round the factors of float32 products to 10 bits (TF32) for `tf32`, and not otherwise.

    TensorFlow's own default would do so for `float32`, too. It is a setting of the process, asked at each operation.
    """
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def threads_in_use() -> int:
    """Threads that one operation may use on a CPU."""
    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

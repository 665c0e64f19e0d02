"""`tfmt-sweep`: every run of a grid, once."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from tfmt import signals, streams
from tfmt.flags import Command, define_require_gpu, define_run_flags, run_command
from tfmt.memory import keep_memory
from tfmt.spec import MODES, TASK_NAMES, RunSpec
from tfmt.study.grid import AXES, FISHER_UNIONS, Grid, expand_grid, parse_axes
from tfmt.study.search import SEARCHES
from tfmt.study.shards import parse_shard
from tfmt.train import require_gpu
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.study.sweep import Sweep

_SUMMARY = (
    "Runs every combination of the comma lists once and writes a record of each.\n"
    "A failed or diverged run is recorded, and the rest goes on. The same command goes on where an interrupted sweep\n"
    "stopped, and skips what is done."
)
_AXIS_HELP = {
    "task": f"Tasks, a comma list of {', '.join(TASK_NAMES)}.",
    "mode": f"Modes, rows of the papers' tables, a comma list of {', '.join(MODES)}.",
    "layers": "Choices of blocks, a comma list: all, 5, 0-3, 0+5+11 (together), or `each` for every block in turn.",
    "mask_size": "Weights per LayerNorm in the outlier modes, a comma list; other modes run once.",
    "mask_fraction": "Parts of the feed-forward LayerNorms in the Fisher modes, a comma list; other modes run once.",
    "select": "What trains with --mode=custom, an expression; give the flag again for each further one.",
    "budget": "What `budget` in --select is, a comma list: numbers of weights, or percent of the encoder, 0.5%.",
    "learning_rate": "Peak learning rates, a comma list; unset means tfmt-train's default for each mode.",
    "seed": "Seeds, a comma list; P1 uses three.",
}
_SHARED = tuple(name for name in RunSpec.model_fields if name not in (*AXES, "fisher_from"))


def _define(values: flags.FlagValues) -> None:
    for name in AXES:
        if name == "select":
            flags.DEFINE_multi_string(name, [], _AXIS_HELP[name], flag_values=values)
        else:
            flags.DEFINE_string(name, "", _AXIS_HELP[name], flag_values=values)
    define_run_flags(values, _SHARED)
    define_require_gpu(values)
    flags.DEFINE_enum("fisher_union", "none", FISHER_UNIONS,
                      "held_out adds P2's union of other tasks' masks; none does not.", flag_values=values)  # fmt: skip
    flags.DEFINE_enum("search", "all", SEARCHES,
                      "Which runs: all is the papers' way; first_seed finds the rate with the first seed, halving also "
                      "stops its worse rates early.", flag_values=values)  # fmt: skip
    flags.DEFINE_integer("workers", 1, "Processes, each with its own GPUs or cores; 0 runs everything in this one.",
                         lower_bound=0, flag_values=values)  # fmt: skip
    flags.DEFINE_string("shard", "", "Share of the runs that comes first, i/n, i from 0 as Slurm's arrays count; empty "
                        "is all of them.", flag_values=values)  # fmt: skip
    flags.DEFINE_bool("leave", False, "Ends where nothing is free; else it waits for runs that others hold and may yet "
                      "lose.", flag_values=values)  # fmt: skip
    flags.DEFINE_string("ray", "", "Ray cluster that executes the runs: auto, the head's HOST:PORT, or local for this "
                        "machine.", flag_values=values)  # fmt: skip
    flags.DEFINE_float("gpus_per_run", None, "With --ray: GPUs of each run, also a part of one; unset is one, or one a "
                       "replica, where there are GPUs.", flag_values=values)  # fmt: skip
    flags.DEFINE_integer("cpus_per_run", 0, "With --ray: CPUs and threads of each run; 0 is a GPU's share of its "
                         "machine, else 1.", lower_bound=0, flag_values=values)  # fmt: skip
    flags.DEFINE_bool("retry_failed", False, "Runs failed runs again; else they stay as recorded.", flag_values=values)
    flags.DEFINE_string("output_dir", "runs", "Folder that holds the runs' folders.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Counts the runs, those done, and what selections train; then stops.", flag_values=values
    )
    flags.DEFINE_bool("status", False, "Tells how the sweep stands, here and elsewhere, and what it takes; then stops.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_bool("clean", False, "Removes what nobody needs any more, as --status lists it; then tells that.",
                      flag_values=values)  # fmt: skip


def read_grid(values: flags.FlagValues) -> Grid:
    """The grid that the flags ask for.

    Raises:
      RequestError: an entry cannot be read, or a combination cannot be trained.
    """
    from tfmt.bert.configs import find_shape
    from tfmt.errors import RequestError

    if values.model is None:
        raise RequestError("--model is required: the BERT to tune")
    axes = parse_axes({name: values[name].value or "" for name in AXES})
    needed = "custom" in axes.get("mode", ()) or any(layers != "all" for layers in axes.get("layers", ()))
    shape = find_shape(values.model, values.revision) if needed else None
    settings = {name: values[name].value for name in _SHARED}
    return expand_grid(axes, settings, shape=shape, fisher_union=values.fisher_union)


def _check(values: flags.FlagValues) -> Grid:
    """The grid, once what is asked for fits together."""
    from tfmt.errors import RequestError

    parse_shard(values.shard)
    _check_ray(values)
    for name in ("status", "clean"):
        if values.dry_run and values[name].value:
            raise RequestError(f"--dry_run and --{name} are two questions; ask one of them")
    return read_grid(values)


def _check_ray(values: flags.FlagValues) -> None:
    from tfmt.errors import RequestError
    from tfmt.study.cluster import check_address, check_wish

    if values.ray:
        check_address(values.ray)
        check_wish(values.gpus_per_run, values.replicas, values.batch_size)
        if values.require_gpu and values.gpus_per_run == 0:
            raise RequestError("--gpus_per_run=0 asks for none of the GPUs that --require_gpu needs; leave one out")
        return
    for name in ("gpus_per_run", "cpus_per_run"):
        if values[name].present:
            raise RequestError(f"--{name} is for machines of a cluster; give --ray as well, or leave it out")


def _tell_status(grid: Grid, values: flags.FlagValues) -> None:
    from tfmt.study.status import clean, describe_status

    if values.clean:
        print(clean(grid, values.output_dir, values.search))
    width = shutil.get_terminal_size(fallback=(200, 24)).columns
    print(describe_status(grid, values.output_dir, values.search, width))


def _main(values: flags.FlagValues) -> int:
    grid = _check(values)
    if values.status or values.clean:
        _tell_status(grid, values)
        return 0
    if values.dry_run:
        from tfmt.study.dry_run import describe_sweep

        print(describe_sweep(grid, values.output_dir, values.workers, values.search))
        return 0
    from tfmt.errors import RunError
    from tfmt.study.sweep import Sweep

    address = ""
    if values.ray:
        from tfmt.study.cluster import find_cluster

        address = find_cluster(values.ray)
    elif values.require_gpu:
        require_gpu("tfmt-sweep", values.verbosity)
    with streams.told_if_slow(f"tfmt-sweep: looks for models and text of {len(grid):,} runs, and for what is done"):
        sweep = Sweep(
            grid, values.output_dir, search=values.search, shard=parse_shard(values.shard), leave=values.leave,
            retry_failed=values.retry_failed, verbosity=values.verbosity,
        )  # fmt: skip
    stopped: RunError | signals.Stop | None = None
    if not values.workers and not address:
        keep_memory()  # runs compute in this process
    try:
        if address:
            _run_on_cluster(sweep, address, values)
        else:
            sweep.run(values.workers)
    except (RunError, signals.Stop) as error:  # what was done until then is told all the same
        stopped = error
    print(sweep.board.summary())
    if sweep.held and stopped is None:
        waits = f", {sweep.awaiting:,} more wait for what these show" if sweep.awaiting else ""
        print(f"held      {counted(sweep.held, 'run')} by other processes{waits}; {len(sweep.failures):,} failed")
    print(f"records   {values.output_dir}")
    for name, message in sweep.failures.items():
        print(f"tfmt-sweep: {name} failed: {message}", file=sys.stderr)
    for name, message in sweep.left.items():
        print(f"tfmt-sweep: {name} left without a record: {message}; the same command tries it again", file=sys.stderr)
    if isinstance(stopped, signals.Stop):
        stopped.kept = "; ".join(filter(None, (stopped.kept, "the same command goes on")))
    if stopped is not None:
        raise stopped
    return 1 if sweep.left or (sweep.failures and not sweep.held) else 0


def _run_on_cluster(sweep: Sweep, address: str, values: flags.FlagValues) -> None:
    from tfmt.errors import RequestError
    from tfmt.study.cluster import LOG_FILE, Cluster, make_wish
    from tfmt.study.ray_pool import RayPool

    with Cluster(address, sweep.output_dir / LOG_FILE) as cluster:
        nodes = cluster.nodes()
        wish = make_wish(nodes, values.gpus_per_run, values.cpus_per_run, values.replicas)
        if values.require_gpu and not wish.gpus:
            raise RequestError("--require_gpu: no machine of the cluster has a GPU")
        most = values.workers if values["workers"].present else 0
        sweep.run(make_pool=functools.partial(RayPool, cluster, wish, most))


_EXAMPLES = (
    "tfmt-sweep --model=demo --task=rotten_tomatoes --mode=full,layernorm --seed=0,1 --dry_run",
    "tfmt-sweep --flagfile=table1.flags --data_dir=glue --workers=2",
    "tfmt-sweep --flagfile=table1.flags --data_dir=glue --ray=auto",
)
COMMAND = Command("tfmt-sweep", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""What a run or a sweep would do, told from configs and records alone, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tfmt.bert.base_weights import model_digest
from tfmt.bert.configs import find_model, find_shape
from tfmt.bert.vocabulary import SUBLAYERS, Weight, list_weights
from tfmt.data.sources import read_dataset_for
from tfmt.errors import RequestError
from tfmt.runs.records import find_records
from tfmt.runs.runner import count_used, read_union, union_size
from tfmt.selection.modes import Plan, choose_weights, plan_mode
from tfmt.selection.stored import digest_masks
from tfmt.selection.summary import format_summary
from tfmt.spec import ARITHMETIC, RunSpec, digest_json, parse_layers
from tfmt.study.grid import Grid
from tfmt.study.times import Times, format_seconds
from tfmt.tasks import find_task
from tfmt.words import counted


def describe(spec: RunSpec, output_dir: str) -> str:
    """The dry run of a spec as text: a table by sublayer, counts, steps, what is stored, and where.

    Data is read where it lies on this machine; otherwise the published sizes count the steps.

    Raises:
      RequestError: the config cannot be had, or the spec does not fit the model or the data.
    """
    shape = find_shape(spec.model, spec.revision)
    local = bool(spec.data_dir) or spec.task == "rotten_tomatoes"
    dataset = read_dataset_for(spec) if local else None
    task = dataset.task if dataset else find_task(spec.task)
    weights = list_weights(shape, task.head, task.num_labels)
    model_sha256 = _model_digest(spec)
    union = read_union(spec, weights, model_sha256)
    plan = plan_mode(weights, spec.mode, layers=spec.layers, mask_size=spec.mask_size, mask_fraction=spec.mask_fraction,
                     outlier_pool=spec.outlier_pool, union_size=union_size(union))  # fmt: skip
    head = sum(weight.size for weight in weights if weight.sublayer == "classifier")
    total = sum(weight.size for weight in weights)
    lines = [format_summary(_rows(weights, plan, spec), plan.tuned, 100 * plan.tuned / (total - head), head)]

    sizes = {name: len(split) for name, split in dataset.splits.items()} if dataset else dict(task.sizes)
    if "train" in sizes:
        examples = count_used(sizes["train"], spec.train_limit)
        steps = examples // spec.batch_size
        if not steps:
            raise RequestError(
                f"--batch_size={spec.batch_size} is more than the {counted(examples, 'training example')}"
            )
        source = "" if dataset else " (published size; the data is not on this machine)"
        lines.append(f"steps     {steps:,} an epoch x {counted(spec.epochs, 'epoch')} = {steps * spec.epochs:,}, "
                     f"batches of {spec.batch_size} from {counted(examples, 'example')}{source}")  # fmt: skip
    else:
        lines.append("steps     known once the data is there")
    if spec.frozen_prefix == "cached":
        below = (parse_layers(spec.layers) or (shape.num_hidden_layers,))[0]
        lines.append(f"cached    the output of the lowest {counted(below, 'block')}, computed once, without dropout")
    kept = "the tuned weights and the head of the " + ("best" if spec.keep_epoch == "best" else "last") + " epoch"
    lines.append(
        "stored    record.json, spec.json, events" + ("" if spec.keep == "scores" else f", tuned.safetensors: {kept}")
    )
    digests = {"model": model_sha256, **(dataset.digests if dataset else {"data": None})}
    if union is not None:
        digests["fisher_from"] = digest_masks(union)
    lines.append(f"folder    {_folder(spec, output_dir, digests)}")
    return "\n".join(lines)


def _rows(weights: tuple[Weight, ...], plan: Plan, spec: RunSpec) -> list[tuple[str, int, int]]:
    """(sublayer, weights, trained) of every sublayer of the model."""
    trained = {weight.path: weight.size for weight in weights if weight.sublayer == "classifier"}
    trained |= {weight.path: weight.size for weight in plan.whole}
    for pool in plan.pools:
        if len({weight.sublayer for weight in pool.weights}) > 1:  # drawn, which needs no values
            chosen = choose_weights(Plan((), (pool,)), seed=spec.seed)
            trained |= {path: len(indices) for path, indices in chosen.items()}
        elif pool.weights:
            trained[pool.weights[0].path] = pool.count  # of that sublayer, as all of the pool
    rows = []
    for sublayer in SUBLAYERS:
        members = [weight for weight in weights if weight.sublayer == sublayer]
        if members:
            rows.append((sublayer, sum(w.size for w in members), sum(trained.get(w.path, 0) for w in members)))
    return rows


def _model_digest(spec: RunSpec) -> str | None:
    """The base model's digest, or None where its weights are not on this machine."""
    try:
        folder = find_model(spec.model, download=False, revision=spec.revision)
        return None if folder is None else model_digest(folder)
    except RequestError:
        return None  # no weights: the config alone was asked for


def _folder(spec: RunSpec, output_dir: str, digests: dict[str, str | None]) -> str:
    """The run's folder, as far as it is known without weights and data."""
    known = {name: digest for name, digest in digests.items() if digest is not None}
    if len(known) == len(digests):
        return str(Path(output_dir) / spec.run_id(**known))
    return str(Path(output_dir) / f"{spec.label()}-<hash of the settings, the weights and the data>")


def describe_sweep(grid: Grid, output_dir: str | Path, workers: int) -> str:
    """How many runs a grid has, how many are done, and how long the rest will take; reads no weights and no data."""
    records = find_records(output_dir)[0] if Path(output_dir).is_dir() else []
    times, status = Times(), {}
    for record in records:
        times.add(record)
        if record.origin.arithmetic == ARITHMETIC:
            scores_alone = record.status == "completed" and record.spec.keep == "scores"
            status[_settings(record.spec)] = "unkept" if scores_alone else record.status
    ended = [status.get(_settings(spec)) for spec in grid.runs]
    failed = ended.count("failed")
    unkept = sum(end == "unkept" and spec.keep == "tuned" for spec, end in zip(grid.runs, ended, strict=True))
    open_ = [spec for spec, end in zip(grid.runs, ended, strict=True) if end is None]
    done = len(grid.runs) - len(open_) - failed
    unions = [union.own for union in grid.unions]
    counts = " x ".join(_count_axes(grid))
    lines = [f"runs      {len(grid):,}" + (f" ({counts})" if counts else "")]
    if grid.unions:
        lines.append(f"unions    {len(grid.unions):,} of them wait for the masks of others, and count as not done here")
    lines.append(f"done      {done:,}" + (f", and {failed:,} failed (--retry_failed: again)" if failed else ""))
    if unkept:
        lines.append(
            f"          {unkept:,} of them without the weights that --keep=tuned asks for, which the sweep refuses"
        )
    seconds = [times.estimate(spec) for spec in [*open_, *unions]]
    known = [second for second in seconds if second is not None]
    if not seconds:
        lines.append("time      nothing is left to run")
    elif known:
        estimate = sum(known) / len(known) * len(seconds) / max(workers, 1)
        lines.append(f"time      about {format_seconds(estimate)}, as {counted(times.count, 'run')} took")
    else:
        lines.append("time      known once a run has been timed")
    lines.append("          (told from settings alone: weights and data, which run ids also depend on, were not read)")
    return "\n".join(lines)


def _settings(spec: RunSpec) -> str:
    return digest_json(spec.identity())


def _count_axes(grid: Grid) -> Iterator[str]:
    """The numbers of tasks, modes, ..., where their product is the number of runs."""
    names = {"task": "tasks", "mode": "modes", "layers": "layers", "mask_size": "mask sizes",
             "mask_fraction": "mask fractions", "learning_rate": "learning rates", "seed": "seeds"}  # fmt: skip
    counts = {words: len({getattr(run, name) for run in grid.runs}) for name, words in names.items()}
    product = 1
    for count in counts.values():
        product *= count
    if product == len(grid):
        yield from (f"{count} {words if count > 1 else words[:-1]}" for words, count in counts.items()
                    if count > 1 or words in ("tasks", "modes"))  # fmt: skip

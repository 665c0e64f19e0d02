"""What a run or a sweep would do, told from configs and records alone, without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from tfmt.bert.base_weights import model_digest
from tfmt.bert.configs import find_model, find_shape
from tfmt.bert.vocabulary import SUBLAYERS, Weight, list_weights
from tfmt.data.sources import read_dataset_for
from tfmt.errors import RequestError
from tfmt.expressions import split_label
from tfmt.runs.paused import find_paused
from tfmt.runs.records import find_records
from tfmt.runs.runner import count_used
from tfmt.selection.modes import list_full_runs, plan_digests, plan_spec
from tfmt.selection.plans import Plan, choose
from tfmt.selection.steps import Fixed, count_parts
from tfmt.selection.summary import format_summary, format_terms
from tfmt.selection.weight_sets import WeightSet, name_of
from tfmt.spec import ARITHMETIC, RunSpec, digest_json
from tfmt.study.grid import Grid
from tfmt.study.search import SEARCHES, Cost, Course, Place, Search, Slot, cell_of, foresee, own_spec
from tfmt.study.times import Times, format_seconds
from tfmt.tasks import find_task
from tfmt.words import counted


def describe(spec: RunSpec, output_dir: str, *, by_layer: bool = False) -> str:
    """The dry run of a spec as text: a table by sublayer, counts, steps, what is stored, and where.

    Args:
      spec: the run.
      output_dir: the folder of the runs' folders.
      by_layer: a row for each part of each layer, in the names that expressions use.

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
    plan = plan_spec(spec, weights, shape.num_attention_heads, model_sha256)
    head = sum(weight.size for weight in weights if weight.sublayer == "classifier")
    total = sum(weight.size for weight in weights)
    drawn = choose(plan, seed=spec.seed).weights if plan.is_drawn else None  # which needs no values
    tuned = plan.bounds if drawn is None else (len(drawn), len(drawn))
    lines = [format_summary(_rows(weights, plan, drawn, by_layer), tuned, total - head, head)]
    if spec.mode == "custom":
        lines.append(format_terms([(term.text, term.bounds) for term in plan.terms]))

    sizes = {name: len(split) for name, split in dataset.splits.items()} if dataset else dict(task.sizes)
    if "train" in sizes:
        examples = count_used(sizes["train"], spec.train_limit)
        steps = examples // spec.batch_size
        if not steps:
            raise RequestError(
                f"--batch_size={spec.batch_size} is more than the {counted(examples, 'training example')}"
            )
        source = "" if dataset else " (published size; the data is not on this machine)"
        epochs = "at most " * bool(spec.early_stopping) + counted(spec.epochs, "epoch")
        lines.append(f"steps     {steps:,} an epoch x {epochs} = {steps * spec.epochs:,}, "
                     f"batches of {spec.batch_size} from {counted(examples, 'example')}{source}")  # fmt: skip
    else:
        lines.append("steps     known once the data is there")
    if spec.frozen_prefix == "cached":
        lines.append(
            f"cached    the output of the lowest {counted(plan.lowest_block, 'block')}, computed once, without dropout"
        )
    for full in list_full_runs(spec, plan).values():
        took = f"{counted(full.epochs, 'epoch')} at {full.learning_rate:g}"
        lines.append(f"first     a full fine-tuning to compare with, {took}; runs share it")
    kept = "the tuned weights and the head of the " + ("best" if spec.keep_epoch == "best" else "last") + " epoch"
    lines.append(
        "stored    record.json, spec.json, selection and predictions, events"
        + ("" if spec.keep == "scores" else f", tuned.safetensors: {kept}")
    )
    digests = {"model": model_sha256, **(dataset.digests if dataset else {"data": None})}
    digests |= plan_digests(spec, plan)
    lines.append(f"folder    {_folder(spec, output_dir, digests)}")
    return "\n".join(lines)


def _rows(
    weights: tuple[Weight, ...], plan: Plan, drawn: WeightSet | None, by_layer: bool
) -> list[tuple[str, int, tuple[int, int]]]:
    """(name, weights, trained at least and at most) of every sublayer of the model, or of every part of a layer."""
    names: dict[str, list[Weight]] = {}
    for sublayer in SUBLAYERS:
        for weight in (each for each in weights if each.sublayer == sublayer):
            names.setdefault(name_of(weight) if by_layer else sublayer, []).append(weight)
    rows = []
    for name, members in names.items():
        size = sum(weight.size for weight in members)
        if members[0].sublayer == "classifier":
            bounds = size, size
        else:
            step = plan.step if drawn is None else Fixed(drawn)
            bounds = count_parts(step, frozenset(weight.path for weight in members))
        rows.append((name, size, bounds))
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


def describe_sweep(grid: Grid, output_dir: str | Path, workers: int, search: str = "all") -> str:
    """How many runs a grid has, how many are done, what each search costs, and how long the one asked for will take.

    Reads no weights and no data.
    """
    there = Path(output_dir).is_dir()
    times, status, courses = Times(), {}, {}
    for paused in find_paused(output_dir)[0] if there else []:
        times.note_paused(paused)
        if paused.arithmetic == ARITHMETIC:
            courses[digest_settings(paused.spec)] = Course.of(paused.epochs, paused.score_name)
    for record in find_records(output_dir)[0] if there else []:
        times.add(record)
        if record.origin.arithmetic == ARITHMETIC:
            scores_alone = record.status == "completed" and record.spec.keep == "scores"
            status[digest_settings(record.spec)] = "unkept" if scores_alone else record.status
            result = record.result if record.status != "failed" else None
            epochs, name = (result.epochs, result.score_name) if result else ([], "")
            courses[digest_settings(record.spec)] = Course.of(epochs, name, record.status)
    plan = Search(grid, search)
    for spec in grid.runs:
        if course := courses.get(digest_settings(spec)):
            plan.note(spec, course)
    ended = [status.get(digest_settings(spec)) for spec in grid.runs]
    failed = ended.count("failed")
    unkept = sum(end == "unkept" and spec.keep == "tuned" for spec, end in zip(grid.runs, ended, strict=True))
    open_ = [spec for spec, end in zip(grid.runs, ended, strict=True) if end is None]
    out = sum(plan.granted(spec) is None for spec in open_)
    done = len(grid.runs) - len(open_) - failed
    counts = " x ".join(_count_axes(grid))
    lines = [f"runs      {len(grid):,}" + (f" ({counts})" if counts else "")]
    if grid.plans:
        lines.append(format_terms(_tell_selections(grid)))
    if grid.unions:
        lines.append(f"unions    {len(grid.unions):,} of them wait for the masks of others, and count as not done here")
    lines.append(f"done      {done:,}" + (f", and {failed:,} failed (--retry_failed: again)" if failed else ""))
    if unkept:
        lines.append(
            f"          {unkept:,} of them without the weights that --keep=tuned asks for, which the sweep refuses"
        )
    if out:
        lines.append(f"          {out:,} more are not needed, as others are better (--search={search})")
    lines += _tell_costs(grid, search, times)
    left = plan.left()
    seconds = [times.estimate(spec) for spec, _ in left]
    known = [second for second in seconds if second is not None]
    if not left:
        lines.append("time      nothing is left to run")
    elif known:
        mean = sum(known) / len(known)
        parts = zip(left, seconds, strict=True)
        total = sum(share * (mean if second is None else second) for (_, share), second in parts)
        timed = counted(times.count, "run") if times.count else "the epochs of runs that wait"
        lines.append(f"time      about {format_seconds(total / max(workers, 1))}, as {timed} took")
    else:
        lines.append("time      known once a run has been timed")
    lines.append("          (told from settings alone: weights and data, which run ids also depend on, were not read)")
    return "\n".join(lines)


def _tell_costs(grid: Grid, search: str, times: Times) -> list[str]:
    """A table of what each search costs from its start on; nothing for a grid in which there is nothing to search."""
    cells: dict[object, list[Slot]] = {}
    slots: tuple[Slot, ...] = (*grid.runs, *grid.unions)
    for slot in slots:
        cells.setdefault(cell_of(slot)[0], []).append(slot)
    examples = [times.count_examples(own_spec(members[0])) for members in cells.values()]
    weights = [count or 0 for count in examples] if all(examples) else [1] * len(cells)
    costs: dict[tuple[str, bool], tuple[int, int, int]] = {}
    for way in SEARCHES:
        for close in (False, True):
            runs = epochs = work = 0
            for members, weight in zip(cells.values(), weights, strict=True):
                places = tuple(cell_of(slot)[1] for slot in members)
                cost = _foresee(way, own_spec(members[0]).epochs, places, close)
                runs, epochs, work = runs + cost.runs, epochs + cost.epochs, work + weight * cost.epochs
            costs[way, close] = runs, epochs, work
    whole = costs["all", False]
    if all(cost == whole for cost in costs.values()):
        return []
    lines = [f"search    {'':<12}{'runs':<18}{'epochs':<20}{'examples' if all(examples) else 'epochs'}"]
    for way in SEARCHES:
        low, high = costs[way, False], costs[way, True]
        spans = [_span(f"{low[number]:,}", f"{high[number]:,}") for number in (0, 1)]
        share = _span(*(f"{100 * cost[2] / whole[2]:.0f}" for cost in (low, high)))
        mark = " (asked for)" if way == search else ""
        lines.append(f"          {way:<12}{spans[0]:<18}{spans[1]:<20}{share} %{mark}")
    lines.append("          (the more where a second rate comes within a point of the best; if no run diverges)")
    return lines


@functools.cache
def _foresee(way: str, epochs: int, places: tuple[Place, ...], close: bool) -> Cost:
    return foresee(way, epochs, dict.fromkeys(places, Course()), close=close)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def digest_settings(spec: RunSpec) -> str:
    """Equal for runs that are alike as far as settings tell; what they read is not."""
    selection = {"select": split_label(spec.select)[1], "budget": spec.budget}  # in ids by the model's table alone
    return digest_json(spec.identity() | selection | {"fisher_examples": spec.fisher_examples})


def _tell_selections(grid: Grid) -> list[tuple[str, tuple[int, int]]]:
    """Each selection and budget of a grid: at least and at most so many weights, whatever the task's head."""
    told: dict[str, tuple[int, int]] = {}
    for (select, budget, _), plan in grid.plans.items():
        name, expression = split_label(select)
        text = " ".join(filter(None, (name or expression, budget)))
        low, high = told.get(text, plan.bounds)
        told[text] = min(low, plan.bounds[0]), max(high, plan.bounds[1])
    return list(told.items())


def _count_axes(grid: Grid) -> Iterator[str]:
    """The numbers of tasks, modes, ..., where their product is the number of runs."""
    names = {"task": "tasks", "mode": "modes", "layers": "layers", "mask_size": "mask sizes",
             "mask_fraction": "mask fractions", "select": "selections", "budget": "budgets",
             "learning_rate": "learning rates", "seed": "seeds"}  # fmt: skip
    counts = {words: len({getattr(run, name) for run in grid.runs}) for name, words in names.items()}
    product = 1
    for count in counts.values():
        product *= count
    if product == len(grid):
        yield from (f"{count} {words if count > 1 else words[:-1]}" for words, count in counts.items()
                    if count > 1 or words in ("tasks", "modes"))  # fmt: skip

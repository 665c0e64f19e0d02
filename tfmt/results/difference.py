"""What differs between two runs, as a table: settings, versions, machine, and scores epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfmt.results.formats import Block, Table
from tfmt.runs.comparison import (
    LOSS,
    Answers,
    Number,
    compare_epochs,
    compare_facts,
    compare_predictions,
    machine_of,
    versions_of,
)
from tfmt.runs.records import Record
from tfmt.training.predictions import Predictions
from tfmt.words import without_folders


def tabulate_difference(
    one: Record, other: Record, predictions: tuple[Predictions | None, Predictions | None] = (None, None)
) -> Table:
    """Two runs side by side.

    Args:
      one: a run.
      other: another.
      predictions: what each predicted, where that is known.
    """
    blocks: list[Block] = []
    numbers: list[dict[str, Any]] = []
    for title, tell in _GROUPS.items():
        differing = compare_facts(tell(one), tell(other))
        if differing:
            rows = tuple((name, _show(first), _show(second)) for name, first, second in differing)
            blocks.append(Block(title, ("", "A", "B"), rows))
        numbers += [{"what": name, "a": first, "b": second, "epoch": None} for name, first, second in differing]
    epochs = list(compare_epochs(one, other))
    first, second = predictions
    answers = list(compare_predictions(first, second)) if first and second else []
    if epochs:
        blocks.append(scores_block(epochs, answers))
    numbers += [{"what": each.what, "a": each.one, "b": each.other, "epoch": each.epoch} for each in epochs]
    numbers += [
        {"what": f"{each.split} predictions that differ", "a": None, "b": each.differing, "epoch": each.epoch}
        for each in answers
    ]
    caption = [f"A: {one.run_id}", f"B: {other.run_id}", "What is not listed is equal; losses are the epochs' means."]
    return Table("difference", "What differs between two runs", tuple(caption), tuple(blocks), tuple(numbers))


def scores_block(epochs: list[Number], answers: list[Answers], names: tuple[str, str] = ("A", "B")) -> Block:
    """Numbers and predictions of two runs by epoch; metrics in percent, their differences in points.

    Args:
      epochs: from `compare_epochs`.
      answers: from `compare_predictions`.
      names: of the two runs.
    """
    rows: list[tuple[str, ...]] = []
    for number in sorted({each.epoch for each in epochs}):
        for each in epochs:
            if each.epoch == number:
                rows.append((str(number), each.what, *_show_number(each)))
        for told in answers:
            if told.epoch == number:
                largest = "" if not told.largest else f", by at most {told.largest:.1e}"
                rows.append((str(number), f"{told.split} predictions", "", "", _show_answers(told) + largest))
    return Block("Epoch by epoch", ("epoch", "", *names, "difference"), tuple(rows))


def _show_answers(told: Answers) -> str:
    return f"{told.differing:,} of {told.total:,} differ" if told.differing else "="


def _show_number(each: Number) -> tuple[str, str, str]:
    loss = each.what == LOSS
    texts = ["-" if value is None else f"{value:.9f}" if loss else f"{100 * value:.2f}" for value in each[2:]]
    if each.one is None or each.other is None:
        return texts[0], texts[1], "=" if each.one is each.other else "-"
    if not each.difference:
        return texts[0], texts[1], "="
    return texts[0], texts[1], f"{each.difference:+.1e}" if loss else f"{100 * each.difference:+.2g}"


def _show(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = str(value)
    return text[:12] if len(text) in (40, 64) and text.isalnum() else without_folders(text)


def _sources(record: Record) -> dict[str, Any]:
    """Of what base model and data a run is."""
    commit = record.model.commit if record.model else None
    model = {"model": record.model_name, "model's commit": commit, "model's sha256": record.origin.model_sha256}
    return model | {"data's sha256": record.origin.data_sha256}


def _ends(record: Record) -> dict[str, Any]:
    """How a run ended, and what it tuned."""
    told: dict[str, Any] = {"status": record.status, "error": record.error}
    if record.parameters:
        told |= {"weights tuned": record.parameters.tuned, "weights of the head": record.parameters.head}
    if record.result:
        told |= {"best epoch": record.result.best_epoch, "collapsed": record.result.collapsed}
        told |= {f"examples of {split}": count for split, count in record.result.examples.items()}
    return told


_GROUPS: dict[str, Callable[[Record], dict[str, Any]]] = {
    "Settings": lambda record: record.spec.model_dump(),
    "Model and data": _sources,
    "How it ended": _ends,
    "Versions": versions_of,
    "Machine": machine_of,
}

"""The README.md of an export: the hub's front matter, what the model is, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmt.runs.records import Result
from tfmt.tasks import TASKS, Task
from tfmt.tuned.load import TunedWeights
from tfmt.words import counted

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The tasks' data on the hub. Of the Penn Treebank, which is sold, and of people's own files nothing is known there.
_DATASETS = {name: "nyu-mll/glue" for name, task in TASKS.items() if task.glue is not None} | {
    "conll2003_ner": "eriktks/conll2003",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
}
_CONFIGS = {"conll2003_ner": "conll2003"}  # where it is not the task's name
_PIPELINES = {"sentence": "text-classification", "tokens": "token-classification"}
# The hub's names of metrics, where they are not tfmt's.
_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr", "strict_f1": "f1"}


def write_card(tuned: TunedWeights, folder: Path, code: Sequence[str], *, library: str, tags: Sequence[str]) -> None:
    """Writes README.md. It names the base model and never says where on this machine it lay; a license it names none.

    Args:
      tuned: the model.
      folder: the export's.
      code: lines of Python that load it.
      library: the hub's `library_name`.
      tags: the hub's tags.
    """
    from huggingface_hub import ModelCardData

    record, result, on_hub = tuned.record, tuned.record.result, tuned.on_hub
    spec = record.spec
    metrics = _kept_metrics(tuned)
    data = ModelCardData(
        base_model=on_hub or None,
        base_model_relation=("adapter" if library == "peft" else "finetune") if on_hub else None,
        datasets=[_DATASETS[spec.task]] if spec.task in _DATASETS else None,
        library_name=library,
        metrics=list(dict.fromkeys(_METRICS.get(name, name) for named in metrics.values() for name in named)) or None,
        pipeline_tag=_PIPELINES[tuned.head],
        tags=list(tags),
        model_name=record.run_id,
        eval_results=_published_results(TASKS.get(spec.task), result, metrics) or None,
    )
    if data.eval_results is None:
        data.pop("model_name")  # it stands in the model-index alone
    counts = record.parameters
    stopped = result.stopped_early if result else None
    early = f", the run stopped early after epoch {stopped}" if stopped else ""
    lines = [
        "---",
        data.to_yaml(line_break="\n"),
        "---",
        "",
        f"# {spec.task}, {tuned.base_name}, tuned: {spec.trained}",
        "",
        f"Exported by tfmt {record.origin.tfmt} from the run `{record.run_id}`. {_tell_base(tuned)}",
    ]
    if counts is not None:
        lines.append(
            f"Tuned were {counts.tuned:,} of its {counts.total - counts.head:,} weights, beside the head, at learning "
            f"rate {spec.learning_rate:g} by {spec.optimizer}, seed {spec.seed}; the weights are those of epoch "
            f"{record.kept_epoch} of {spec.epochs}{early}."
        )
    if result is not None:
        lines += [_tell_scores(split, named, result) for split, named in metrics.items()]
        if result.collapsed_in(record.kept_epoch):
            lines.append("It collapsed: it predicts one class only, or a constant.")
    lines += ["", "To load it:", "", "```python", *code, "```"]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tell_base(tuned: TunedWeights) -> str:
    """A sentence on the base model, as exact as it is known."""
    told = f"Its base model is {tuned.base_name}"
    asked, commit = tuned.record.spec.revision, tuned.hub_commit
    if commit:
        told += f" at commit {commit}" + (f" ({asked})" if asked not in ("", commit) else "")
    return f"{told}, whose digest by tfmt is {tuned.record.origin.model_sha256}."


def _kept_metrics(tuned: TunedWeights) -> dict[str, Mapping[str, float]]:
    """{split: {metric: value}} of the epoch whose weights these are; a metric that is not defined is left out."""
    result, kept = tuned.record.result, tuned.record.kept_epoch
    if result is None or kept is None:
        return {}
    found = {
        split: {name: value for name, value in values.items() if value is not None}
        for split, values in result.epochs[kept - 1].metrics.items()
    }
    return {split: values for split, values in found.items() if values}


def _tell_scores(split: str, values: Mapping[str, float], result: Result) -> str:
    told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return f"On {counted(result.examples[split], 'example')} of the {split} split it has {told}."


def _published_results(
    task: Task | None, result: Result | None, metrics: Mapping[str, Mapping[str, float]]
) -> list[EvalResult]:
    """The scores on whole published splits: of a part of one, or of a split of tfmt's own, the hub has no word."""
    from huggingface_hub import EvalResult

    if task is None or result is None or not task.tfds_name:
        return []
    about: dict[str, Any] = {
        "task_type": _PIPELINES[task.head],
        "dataset_type": _DATASETS[task.name],
        "dataset_name": task.title,
        "dataset_config": _CONFIGS.get(task.name, task.name),
    }
    results = []
    for split, values in metrics.items():
        if result.examples[split] == task.sizes.get(split):
            for name, value in values.items():
                kind = _METRICS.get(name, name)
                results.append(EvalResult(metric_type=kind, metric_name=name, metric_value=value, dataset_split=split,
                                          **about))  # fmt: skip
    return results

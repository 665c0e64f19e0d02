"""Predictions of a tuned model, from a run's folder and its base model alone."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfmt.data.examples import Examples
from tfmt.data.own_files import find_own_file, is_held_out, stream_unlabelled
from tfmt.data.rows import Row, read_rows
from tfmt.data.sources import read_dataset_for, read_test_split
from tfmt.errors import RequestError
from tfmt.files import check_output, whole_file
from tfmt.metrics import Scores, score
from tfmt.spec import RunSpec
from tfmt.tasks import Task, custom_task, find_task
from tfmt.tuned.labels import InputLabels
from tfmt.tuned.layouts import file_name, make_layout, output_path
from tfmt.tuned.load import TunedWeights, build_tuned, read_tuned

Parts = Iterator[tuple[list[Row] | None, Examples]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Texts to predict for, and the file that takes the predictions.

    Attributes:
      name: the split's name, or the input file.
      path: the file to write.
      parts: gives the texts part by part, with their rows where the input has columns of its own.
      total: how many texts there are; None for a stream.
      labels: what the predictions are compared with, if there is anything.
      read_labels: gives them for so many predictions, for a file that is read while it is predicted for.
      same_data: whether the texts and labels are those of the run; None where that is unknown.
    """

    name: str
    path: Path
    parts: Callable[[], Parts]
    total: int | None = None
    labels: np.ndarray | None = None
    read_labels: Callable[[int], np.ndarray | None] | None = None
    same_data: bool | None = None


@dataclasses.dataclass(frozen=True)
class Written:
    """A file of predictions that was written.

    Attributes:
      source: what it is about.
      examples: texts, pairs or sentences in it.
      cut_off: words that truncation left without a prediction.
      no_token: words that have none because the tokenizer leaves nothing of them.
      scores: the task's metrics, where there are labels.
      scored: how many predictions they are over.
    """

    source: Source
    examples: int
    cut_off: int
    no_token: int
    scores: Scores | None
    scored: int = 0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions that can be made: run, base model and texts are there and fit together.

    Attributes:
      tuned: what the run tuned.
      task: its task.
      sources: the texts, one a file to write.
    """

    tuned: TunedWeights
    task: Task
    sources: tuple[Source, ...]

    def write(self) -> Iterator[Written]:
        """Predicts and writes file after file, each whole or not at all."""
        from tfmt.bert.tokenizer import load_tokenizer, tokenizer_digest
        from tfmt.data.tokens import tokenize
        from tfmt.training.predictor import Predictor

        spec = self.tuned.record.spec
        tokenizer = load_tokenizer(self.tuned.base)
        digest = tokenizer_digest(tokenizer)
        predictor = Predictor(self.task, lambda: build_tuned(self.tuned), spec.precision)
        for source in self.sources:
            examples = cut_off = no_token = 0
            values: list[np.ndarray] = []
            lengths: list[int] = []
            layout = make_layout(self.task, source.name)
            source.path.parent.mkdir(parents=True, exist_ok=True)
            with (
                whole_file(source.path) as temporary,
                temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
                _bar(source) as bar,
            ):
                for rows, texts in source.parts():
                    cached = source.total is not None
                    split = tokenize(texts, tokenizer, spec.max_length, digest, source.name, cached=cached)
                    predictions = predictor.predict(split, bar.update)
                    file.writelines(f"{line}\n" for line in layout.lines(rows, texts, predictions))
                    examples += len(texts)
                    cut_off += split.words_cut_off
                    no_token += split.words_without_token
                    if source.labels is not None or source.read_labels is not None:
                        values.append(predictions.values)
                        lengths += [] if texts.sentence_lengths is None else texts.sentence_lengths.tolist()
                if not examples:
                    raise RequestError(f"{source.name}: holds no example; there is nothing to predict")
            labels = source.labels
            if source.read_labels is not None:
                labels = source.read_labels(sum(map(len, values)))
            if labels is None:
                yield Written(source, examples, cut_off, no_token, None)
                continue
            scores = score(self.task, labels, np.concatenate(values), np.array(lengths, np.int64))
            yield Written(source, examples, cut_off, no_token, scores, len(labels))


def check_source(split: str, input_file: str) -> None:
    """Raises `RequestError` unless exactly one of a split and a file is given."""
    if bool(split) == bool(input_file):
        raise RequestError("give --split=test, --split=validation, or --input=<file>: one of them")


def prepare_prediction(
    run: str | Path,
    output: str,
    *,
    split: str = "",
    input_file: str = "",
    data_dir: str = "",
    model: str = "",
    encoding: str = "",
) -> Prediction:
    """Finds everything that predictions need, without TensorFlow, and stops at what is wrong.

    Args:
      run: the run's folder.
      output: the file to write, or a folder for files named as GLUE's server asks.
      split: `test` or `validation`; MNLI has two of each.
      input_file: instead of a split, a TSV, CSV, JSON Lines or CoNLL file; it may be larger than memory.
      data_dir: where the task's files lie now, if not where the run found them.
      model: where the base model lies now, if not where the run found it.
      encoding: how files of text write their characters; empty for the run's.

    Returns:
      A `Prediction`, whose `write` makes the files.

    Raises:
      RequestError: the run kept no weights, the base model is another one, or the texts cannot be had.

    Example:
      >>> run = "runs/mrpc-layernorm-lr0.001-s0-d9e29dc098"
      >>> for written in prepare_prediction(run, "validation.tsv", split="validation").write():
      ...     print(written.source.path)
      validation.tsv
    """
    check_source(split, input_file)
    if split not in ("", "test", "validation"):
        raise RequestError(f"--split must be test or validation. Received: --split={split}")
    tuned = read_tuned(run, model=model)
    spec = tuned.record.spec
    changes = {name: value for name, value in (("data_dir", data_dir), ("encoding", encoding)) if value}
    spec = spec.model_copy(update=changes)
    if spec.task == "custom":
        assert spec.task_type
        task = custom_task(spec.task_type, spec.text_columns, tuned.classes)
    else:
        task = find_task(spec.task)
    if input_file:
        path = Path(input_file).expanduser()
        if not path.is_file():
            raise RequestError(f"--input={input_file}: there is no such file")
        target = output_path(output, f"{path.stem}.predictions.tsv", several=False)
        sources = [_stream(spec, task, path, target, str(path))]
    elif split == "validation":
        sources = _validation(tuned, spec, task, output)
    elif spec.task == "custom":
        path = find_own_file(spec.data_dir, "test")
        sources = [_stream(spec, task, path, output_path(output, file_name(task, split), several=False), split)]
    else:
        sources = _test(spec, task, output)
    for source in sources:
        check_output(source.path, makes_folders=True)
    return Prediction(tuned, task, tuple(sources))


def _stream(spec: RunSpec, task: Task, path: Path, target: Path, name: str) -> Source:
    """A file that is read while it is predicted for; where it has labels they are kept for its score."""
    if target.exists() and path.exists() and os.path.samefile(target, path):
        raise RequestError(f"--output={target}: this is the file with the texts; give another")
    first = next(iter(read_rows(path, spec.encoding)), None)
    if first is None:
        raise RequestError(f"{path}: holds no example; there is nothing to predict")
    columns = _find_columns(task, path, first)
    labels = InputLabels(spec, task, path, first.fields)

    def parts() -> Parts:
        for rows, texts in stream_unlabelled(path, task, columns, spec.encoding):
            labels.take(rows, texts.sentence_lengths)
            yield rows, texts

    return Source(name, target, parts, read_labels=labels.read)


def _find_columns(task: Task, path: Path, first: Row) -> tuple[str, ...]:
    """The columns of a file that hold the task's texts: as tfmt calls them, as GLUE does, or a word's in CoNLL."""
    known = [task.text_fields]
    if task.glue is not None:
        known.append(task.glue.text_columns)
    if task.head == "tokens":
        known += [("form",), ("0",)]
    for names in known:
        if all(name in first.fields for name in names):
            return names
    raise RequestError(
        f"{path}:{first.line}: needs the column{'s' if len(known[0]) > 1 else ''} "
        f"{' or '.join(' and '.join(names) for names in dict.fromkeys(known))}, has: {', '.join(first.fields)}"
    )


def _test(spec: RunSpec, task: Task, output: str) -> list[Source]:
    if not task.test_splits:
        raise RequestError(f"--split=test: {task.title} has no test split; give --input, or --split=validation")
    sources = []
    for split in task.test_splits:
        target = output_path(output, file_name(task, split), several=len(task.test_splits) > 1)
        found = read_test_split(task.name, spec.data_dir, split, encoding=spec.encoding, split_seed=spec.split_seed)
        sources.append(_whole(split, target, found))
    return sources


def _validation(tuned: TunedWeights, spec: RunSpec, task: Task, output: str) -> list[Source]:
    """The development splits, with labels; all of them, whatever limit the run set."""
    dataset = read_dataset_for(spec)
    if dataset.task.classes != tuned.classes:
        raise RequestError(f"--data_dir={spec.data_dir}: has other classes than the run's data; give the run's data")
    same = dataset.digest == tuned.record.origin.data_sha256
    sources = []
    for split in task.validation_splits:
        target = output_path(output, file_name(task, split), several=len(task.validation_splits) > 1)
        found = dataset.splits[split]
        source = _whole(split, target, found)
        if task.name == "custom":
            source = dataclasses.replace(source, parts=lambda: _own_validation(spec, task))
        sources.append(dataclasses.replace(source, same_data=same))
    return sources


def _whole(name: str, target: Path, examples: Examples) -> Source:
    """A split that is in memory; where it has labels, as test splits of token tasks do, they are scored."""
    return Source(name, target, lambda: iter([(None, examples)]), total=len(examples), labels=examples.labels)


def _own_validation(spec: RunSpec, task: Task) -> Parts:
    """The validation split of people's own data with all its columns, in one part as evaluation takes it."""
    fraction, seed = spec.validation_fraction, spec.split_seed or 0
    place = Path(spec.data_dir).expanduser()
    path = find_own_file(spec.data_dir, "train" if fraction else "validation") if place.is_dir() else place
    for rows, examples in stream_unlabelled(path, task, (), spec.encoding, chunk=sys.maxsize):
        if not fraction:
            yield rows, examples
            continue
        if examples.sentence_lengths is None:
            texts = [list(row) for row in zip(*examples.texts, strict=True)]
        else:
            words = iter(examples.texts[0])
            texts = [[next(words) for _ in range(length)] for length in examples.sentence_lengths.tolist()]
        held_out = [number for number, row in enumerate(texts) if is_held_out(row, fraction, seed)]
        yield [rows[number] for number in held_out], examples.take(np.array(held_out, np.int64))


def _bar(source: Source) -> tqdm:
    """Shown on a terminal alone, and only for what takes long enough to wonder about."""
    return tqdm(total=source.total, desc=f"Predicting {source.name}", unit=" texts", delay=1, disable=None, leave=False)

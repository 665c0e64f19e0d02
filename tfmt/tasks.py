"""The tasks: what is read, which head is trained, and what is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from tfmt.errors import RequestError

Head = Literal["sentence", "tokens"]
Kind = Literal["classification", "regression", "tokens"]


@dataclasses.dataclass(frozen=True)
class GlueFiles:
    """How a task's own files from the GLUE benchmark are laid out.

    Attributes:
      folder: name of the task's folder.
      text_columns: header names of the texts, in the order of `Task.text_fields`.
      label_column: header name of the label.
      labels: how the files write the classes, in the order of `Task.classes`; empty for scores.
      columns_without_header: the columns of train.tsv and dev.tsv where these have no header row (CoLA).
      drops_corrupt_rows: rows that cannot be read are dropped and counted (QQP) rather than an error.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    columns_without_header: tuple[str, ...] = ()
    drops_corrupt_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: the value of `--task`.
      title: the name in tables.
      head: "sentence" (one output a text) or "tokens" (one output a word).
      kind: what is predicted: a class, a score, or a class for each word.
      text_fields: one or two names of texts; TFDS's where TFDS has the task.
      classes: names of the classes in the order of their integers; empty for regression.
      metrics: names of what `tfmt.metrics.score` measures.
      headline: the metric that tables show, or two whose mean they show.
      validation_splits: what is evaluated after each epoch; the headline is taken from the first.
      test_splits: splits without public labels.
      tfds_name: the dataset in TFDS, or "".
      glue: the layout of GLUE's own files, or None.
      sizes: published number of examples of the training and validation splits, for dry runs without data.
      cased: whether the task is meant for a model that keeps case.
    """

    name: str
    title: str
    head: Head
    kind: Kind
    text_fields: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    tfds_name: str = ""
    glue: GlueFiles | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cased: bool = False

    @property
    def num_labels(self) -> int:
        """Outputs of the head: the number of classes, or 1 for a score."""
        return len(self.classes) or 1

    @property
    def headline_name(self) -> str:
        """Name of the headline: `f1`, or `pearson_spearman_mean` for a mean of two."""
        return self.headline[0] if len(self.headline) == 1 else "_".join(self.headline) + "_mean"

    @property
    def entities(self) -> bool:
        """Whether the words' classes are IOB2 tags that mark entities."""
        return self.metrics == ENTITY_METRICS

    @property
    def fill_class(self) -> int:
        """The prediction of a word that has none of its own: O for entities, else -1, which is never right."""
        return self.classes.index("O") if self.entities else -1


ENTITY_METRICS = ("precision", "recall", "f1", "strict_f1")

_BINARY = ("0", "1")
_SENTENCES = ("sentence1", "sentence2")


def _glue(
    name: str,
    title: str,
    text_fields: tuple[str, ...],
    classes: tuple[str, ...],
    files: GlueFiles,
    sizes: tuple[int, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    headline: tuple[str, ...] = ("accuracy",),
    parts: tuple[str, ...] = (),
) -> Task:
    """A GLUE task; `parts` are the suffixes of MNLI's two validation and test splits."""
    validation = tuple(f"validation_{part}" for part in parts) or ("validation",)
    return Task(
        name=name,
        title=title,
        head="sentence",
        kind="classification" if classes else "regression",
        text_fields=text_fields,
        classes=classes,
        metrics=metrics,
        headline=headline,
        validation_splits=validation,
        test_splits=tuple(f"test_{part}" for part in parts) or ("test",),
        tfds_name=f"glue/{name}",
        glue=files,
        sizes=dict(zip(("train", *validation), sizes, strict=True)),
    )


def _table(tasks: Iterable[Task]) -> dict[str, Task]:
    return {task.name: task for task in tasks}


# Classes are in TFDS's order; sizes are those that TFDS publishes for glue 2.0.0.
TASKS: dict[str, Task] = _table(
    [
        _glue(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            GlueFiles(
                "CoLA", ("sentence",), "label", _BINARY, columns_without_header=("source", "label", "note", "sentence")
            ),
            (8551, 1043),
            metrics=("matthews_correlation",),
            headline=("matthews_correlation",),
        ),
        _glue(
            "sst2",
            "SST-2",
            ("sentence",),
            ("negative", "positive"),
            GlueFiles("SST-2", ("sentence",), "label", _BINARY),
            (67349, 872),
        ),
        _glue(
            "mrpc",
            "MRPC",
            _SENTENCES,
            ("not_equivalent", "equivalent"),
            GlueFiles("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY),
            (3668, 408),
            metrics=("f1", "accuracy"),
            headline=("f1",),
        ),
        _glue(
            "stsb",
            "STS-B",
            _SENTENCES,
            (),
            GlueFiles("STS-B", _SENTENCES, "score", ()),
            (5749, 1500),
            metrics=("pearson", "spearman"),
            headline=("pearson", "spearman"),
        ),
        _glue(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            GlueFiles("QQP", ("question1", "question2"), "is_duplicate", _BINARY, drops_corrupt_rows=True),
            (363849, 40430),
            metrics=("f1", "accuracy"),
            headline=("f1",),
        ),
        _glue(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            GlueFiles("MNLI", _SENTENCES, "gold_label", ("entailment", "neutral", "contradiction")),
            (392702, 9815, 9832),
            parts=("matched", "mismatched"),
        ),
        _glue(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            ("entailment", "not_entailment"),
            GlueFiles("QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment")),
            (104743, 5463),
        ),
        _glue(
            "rte",
            "RTE",
            _SENTENCES,
            ("entailment", "not_entailment"),
            GlueFiles("RTE", _SENTENCES, "label", ("entailment", "not_entailment")),
            (2490, 277),
        ),
        Task(
            name="ptb_pos",
            title="PTB POS",
            head="tokens",
            kind="tokens",
            text_fields=("words",),
            # The 45 tags of the Penn Treebank; -NONE- marks traces, which are dropped.
            classes=(
                *("#", "$", "''", ",", "-LRB-", "-RRB-", ".", ":", "CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR"),
                *("JJS", "LS", "MD", "NN", "NNP", "NNPS", "NNS", "PDT", "POS", "PRP", "PRP$", "RB", "RBR", "RBS"),
                *("RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT", "WP", "WP$", "WRB", "``"),
            ),
            metrics=("accuracy",),
            headline=("accuracy",),
            cased=True,
        ),
        Task(
            name="conll2003_ner",
            title="CoNLL-2003",
            head="tokens",
            kind="tokens",
            text_fields=("words",),
            classes=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
            metrics=ENTITY_METRICS,
            headline=("f1",),
            tfds_name="conll2003",
            sizes={"train": 14041, "validation": 3250},
            cased=True,
        ),
        Task(
            name="rotten_tomatoes",
            title="Rotten Tomatoes",
            head="sentence",
            kind="classification",
            text_fields=("sentence",),
            classes=("negative", "positive"),
            metrics=("accuracy",),
            headline=("accuracy",),
            test_splits=(),
            sizes={"train": 7513, "validation": 1017},
        ),
    ]
)


def custom_task(kind: Kind, text_fields: tuple[str, ...], classes: tuple[str, ...]) -> Task:
    """The task of people's own data, known once its classes were found.

    IOB2 tags, to which readers convert those of other schemes, are scored as entities, other tags by accuracy over
    words.

    Args:
      kind: the value of `--task_type`.
      text_fields: the columns of `--text_columns`.
      classes: the classes found in the data, sorted; empty for regression.

    Returns:
      A task named `custom`.
    """
    metrics: tuple[str, ...] = ("accuracy",)
    headline: tuple[str, ...] = ("accuracy",)
    if kind == "regression":
        metrics = headline = ("pearson", "spearman")
    elif kind == "tokens" and _mark_entities(classes):
        metrics, headline = ENTITY_METRICS, ("f1",)
    return Task(
        name="custom",
        title="custom",
        head="tokens" if kind == "tokens" else "sentence",
        kind=kind,
        text_fields=text_fields,
        classes=classes,
        metrics=metrics,
        headline=headline,
    )


def _mark_entities(tags: Collection[str]) -> bool:
    """Whether these are `O` and tags that begin with `B-` or `I-`, or `O`, `B` and `I`, and nothing else."""
    others = set(tags) - {"O"}
    typed = all(tag[:2] in ("B-", "I-") and tag[2:] for tag in others)
    return "O" in tags and len(others) > 0 and (typed or others <= {"B", "I"})


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
      RequestError: there is none, or it is `custom`, whose classes are only known from its data.
    """
    if name == "custom":
        raise RequestError("task=custom has no fixed classes: read its data with tfmt.data.read_dataset")
    if name not in TASKS:
        raise RequestError(f"task must be one of {', '.join(TASKS)}, custom. Received: task={name!r}")
    return TASKS[name]

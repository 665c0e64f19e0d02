"""Sources of labelled text, their tokens, and the batches made of them."""

from tfmt.data.batches import (
    EpochPlan,
    EvaluationBatch,
    SplitPredictions,
    evaluation_batches,
    plan_epoch,
    training_batches,
)
from tfmt.data.examples import Dataset, Examples
from tfmt.data.sources import count_examples, read_dataset, read_test_split
from tfmt.data.tokens import TokenizedSplit, tokenize

__all__ = [
    "Dataset",
    "EpochPlan",
    "EvaluationBatch",
    "Examples",
    "SplitPredictions",
    "TokenizedSplit",
    "count_examples",
    "evaluation_batches",
    "plan_epoch",
    "read_dataset",
    "read_test_split",
    "tokenize",
    "training_batches",
]

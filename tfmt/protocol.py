"""The numbers that come from the papers, each with its place, and tfmt's own defaults beside them.

P1 is AkbarTajari et al., EMNLP 2022 (arXiv 2302.00378); P2 is ValizadehAslani & Liang, 2024 (arXiv 2403.20284).
"""

# P1, section 2 (experimental setup).
LEARNING_RATES = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
SEEDS = (0, 1, 2)  # P1 reports the mean over three seeds; which ones it does not say.
BATCH_SIZE = 16
MAX_LENGTH = 128
WARMUP_RATIO = 0.1
ADAM_EPSILON = 1e-6
FULL_EPOCHS = 5
LARGE_TASK_EPOCHS = 10
SMALL_TASK_EPOCHS = 20
LARGE_TASKS = ("sst2", "qqp", "mnli", "qnli")

# P1, table 4: weights per LayerNorm.
MASK_SIZES = (4, 16, 64, 256)

# P2 names no fractions; these are tfmt's.
MASK_FRACTIONS = (0.05, 0.1, 0.2, 0.5)

# P1 picks the rate per cell from LEARNING_RATES. A single run without --learning_rate takes tfmt's own choice: the
# usual rate of full fine-tuning, a higher one for a module of many weights, and one that suits small sets of weights.
FULL_LEARNING_RATE = 5e-5
MODULE_LEARNING_RATE = 1e-4
PART_LEARNING_RATE = 5e-3
# Of any selection by an expression, so that two spellings are one run: between those of modules and of small parts. The
# best rates of selections span decades, so that this one should be searched.
CUSTOM_LEARNING_RATE = 1e-3


def paper_epochs(task: str, mode: str) -> int:
    """Epochs of P1's protocol for a task and a mode (P1, section 2)."""
    if mode == "full":
        return FULL_EPOCHS
    return LARGE_TASK_EPOCHS if task in LARGE_TASKS else SMALL_TASK_EPOCHS


def usual_rate(mode: str) -> float:
    """The learning rate of a run that names none."""
    if mode == "full":
        return FULL_LEARNING_RATE
    if mode == "custom":
        return CUSTOM_LEARNING_RATE
    return MODULE_LEARNING_RATE if mode in ("attention", "feedforward") else PART_LEARNING_RATE

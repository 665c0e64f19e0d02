"""The papers' claims, one rule each, fixed before any run.

`RULES` is the table to read. A rule makes comparisons, a few on each task; each comparison speaks for the claim if its
mean reaches a fixed bound. The claim holds if the share of those that do is at least `holds_from`, fails if it is below
`fails_below`, and is mixed in between. A comparison that reads a collapsed run (one that predicts one class only, or a
constant) decides nothing, but counts: a claim on whose outcome such comparisons might have decided either way is
undecided. The interval beside each mean says how sure it is; it decides nothing, because
with the papers' three seeds it would leave nearly everything open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tfmt import protocol
from tfmt.claims import measures, weights
from tfmt.claims.comparisons import Found
from tfmt.results.rows import GLUE_TASKS, P2_TASKS, SMALL_GLUE_TASKS, TOKEN_TASKS


@dataclass(frozen=True)
class Rule:
    """How one claim is decided.

    Attributes:
      name: `C1` ... `C11` of P1, `F1` ... `F5` of P2.
      text: the claim.
      decided_by: which runs, which statistic, which margin, in words.
      holds_from: the least share of comparisons for the claim with which it holds.
      fails_below: the share below which it fails.
      measure: makes the comparisons.
      needs: what `measure` is given: comparable runs (`group`), these and `change`, or an analysis' numbers.
      tasks: the paper's tasks for it.
      modes: the modes of the runs it looks at.
      tokens: whether on tasks that tag words.
      blocks: whether runs of single blocks count; elsewhere only whole models do.
      make: the command that makes what is needed, the way the papers did.
      axes: flags of a sweep that adds to the runs there are, beside `--mode`.
    """

    name: str
    text: str
    decided_by: str
    holds_from: float
    fails_below: float
    measure: Callable[..., Found]
    make: str
    needs: Literal["group", "change", "weights", "fisher"] = "group"
    tasks: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    tokens: bool = False
    blocks: bool = False
    axes: tuple[tuple[str, str], ...] = ()


_SIZES = ("mask_size", ",".join(map(str, protocol.MASK_SIZES)))
_FRACTIONS = ("mask_fraction", ",".join(f"{fraction:g}" for fraction in protocol.MASK_FRACTIONS))

RULES: tuple[Rule, ...] = (
    Rule(
        name="C1",
        text="Every module alone comes close to full fine-tuning.",
        decided_by=f"attention, feedforward and layernorm, each at most {measures.CLOSE:g} points below full",
        holds_from=1.0,
        fails_below=0.5,
        measure=measures.modules_against_full,
        tasks=GLUE_TASKS,
        modes=("full", "attention", "feedforward", "layernorm"),
        make="tfmt-sweep --flagfile=table1.flags",
    ),
    Rule(
        name="C2",
        text="LayerNorms are often on par with full fine-tuning.",
        decided_by=f"layernorm at most {measures.ON_PAR:g} point below full",
        holds_from=0.5,
        fails_below=0.25,
        measure=measures.layernorms_against_full,
        tasks=GLUE_TASKS,
        modes=("full", "layernorm"),
        make="tfmt-sweep --flagfile=table1.flags",
    ),
    Rule(
        name="C3",
        text="One of the two LayerNorms mostly preserves the performance.",
        decided_by=(
            f"layernorm_attention and layernorm_feedforward, each at most {measures.LITTLE:g} points below layernorm"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.one_layernorm_against_both,
        tasks=GLUE_TASKS,
        modes=("layernorm", "layernorm_attention", "layernorm_feedforward"),
        make="tfmt-sweep --flagfile=table1.flags",
    ),
    Rule(
        name="C4",
        text="Random weights of the same number are clearly worse than LayerNorms.",
        decided_by=f"layernorm at least {measures.CLEAR:g} points above random",
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.layernorms_against_random,
        tasks=GLUE_TASKS,
        modes=("layernorm", "random"),
        make="tfmt-sweep --flagfile=table1.flags",
    ),
    Rule(
        name="C5",
        text="The same holds on token-level tasks.",
        decided_by="the comparisons of C1 and C4, on tasks that tag words",
        holds_from=1.0,
        fails_below=0.5,
        measure=measures.modules_and_random_on_tokens,
        tasks=TOKEN_TASKS,
        modes=("full", "attention", "feedforward", "layernorm", "random"),
        tokens=True,
        make="tfmt-sweep --flagfile=table2.flags",
    ),
    Rule(
        name="C6",
        text="A single block's LayerNorms can come close to all of them.",
        decided_by=(
            f"the best block's layernorm at most {measures.CLOSE:g} points below layernorm;"
            " for each seed the block is chosen by the mean of the other seeds; every block was run"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.best_block_against_all,
        tasks=SMALL_GLUE_TASKS,
        modes=("layernorm",),
        blocks=True,
        make="tfmt-sweep --flagfile=table3.flags, and the layernorm runs of table1.flags",
        axes=(("layers", "all,each"),),
    ),
    Rule(
        name="C7",
        text="The middle blocks are best.",
        decided_by=(
            f"mean over the middle third of the blocks at least {measures.BETTER:g} points above the first third's,"
            " and above the last third's; every block was run"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.middle_blocks_against_others,
        tasks=SMALL_GLUE_TASKS,
        modes=("layernorm",),
        blocks=True,
        make="tfmt-sweep --flagfile=table3.flags",
        axes=(("layers", "all,each"),),
    ),
    Rule(
        name="C8",
        text=(
            "LayerNorm weights are bimodal, one mode of much higher magnitude; attention and feed-forward weights"
            " are not."
        ),
        decided_by=(
            "full runs at their chosen rate, Sarle's bimodality coefficient of the middle 98 % of the weights: for both"
            " LayerNorms, gamma and beta together, at or above 5/9 and a larger mode of at least"
            f" {weights.MUCH_HIGHER:g} times the magnitude; for attention and feed-forward at or below 5/9"
        ),
        holds_from=1.0,
        fails_below=0.5,
        measure=weights.modes_of_weights,
        needs="weights",
        make="tfmt-sweep --flagfile=figures.flags",
    ),
    Rule(
        name="C9",
        text="Four outliers a LayerNorm beat a frozen encoder, notably on STS-B.",
        decided_by=(
            f"outliers with n=4 at least {measures.BETTER:g} points above frozen,"
            f" on STS-B at least {measures.CLEAR:g} points"
        ),
        holds_from=1.0,
        fails_below=0.5,
        measure=measures.outliers_against_frozen,
        tasks=SMALL_GLUE_TASKS,
        modes=("frozen", "outliers"),
        make="tfmt-sweep --flagfile=table4.flags, and the frozen runs of table1.flags",
        axes=(("mask_size", "4"),),
    ),
    Rule(
        name="C10",
        text="More outliers are better.",
        decided_by=(
            f"slope of the score of outliers over n, least squares, at least {measures.BETTER:g} points for four times"
            " as many; three or more n"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.score_by_outliers,
        tasks=SMALL_GLUE_TASKS,
        modes=("outliers",),
        make="tfmt-sweep --flagfile=table4.flags",
        axes=(_SIZES,),
    ),
    Rule(
        name="C11",
        text="Outliers beat as many random LayerNorm weights.",
        decided_by=f"outliers at least {measures.BETTER:g} points above outliers_control, for each n",
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.outliers_against_control,
        tasks=SMALL_GLUE_TASKS,
        modes=("outliers", "outliers_control"),
        make="tfmt-sweep --flagfile=table4.flags",
        axes=(_SIZES,),
    ),
    Rule(
        name="F1",
        text="The feed-forward LayerNorm changes most in full fine-tuning.",
        decided_by=(
            "mean |fine-tuned - pre-trained| of the feed-forward LayerNorms at least that of every other component of"
            " the encoder, in the full runs at their chosen rate (dense layers by their kernels)"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=weights.change_of_components,
        needs="change",
        tasks=P2_TASKS,
        modes=("full",),
        make="tfmt-sweep --flagfile=figures.flags",
    ),
    Rule(
        name="F2",
        text="LayerNorm alone is comparable to full fine-tuning and other methods.",
        decided_by=f"layernorm_feedforward at most {measures.LITTLE:g} points below full, and below bitfit",
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.feedforward_layernorm_against_others,
        tasks=P2_TASKS,
        modes=("full", "bitfit", "layernorm_feedforward"),
        make="tfmt-sweep --flagfile=fisher.flags",
    ),
    Rule(
        name="F3",
        text="The feed-forward LayerNorm also has the highest Fisher information.",
        decided_by=(
            "Fisher information per weight of the feed-forward LayerNorms at least that of every other component of the"
            " encoder"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=weights.fisher_of_components,
        needs="fisher",
        make="tfmt-sweep --flagfile=fisher.flags",
    ),
    Rule(
        name="F4",
        text="A small part chosen by Fisher information loses little; random weights of the same number lose more.",
        decided_by=(
            f"fisher with a fraction of at most {measures.SMALL_FRACTION:g}: at most {measures.LITTLE:g} points below"
            f" layernorm_feedforward, and at least {measures.BETTER:g} points above fisher_control"
        ),
        holds_from=0.75,
        fails_below=0.5,
        measure=measures.fisher_against_control,
        tasks=P2_TASKS,
        modes=("layernorm_feedforward", "fisher", "fisher_control"),
        make="tfmt-sweep --flagfile=fisher.flags",
        axes=(_FRACTIONS,),
    ),
    Rule(
        name="F5",
        text="The important part sits in the last blocks, and beta matters more than gamma.",
        decided_by=(
            "of the feed-forward LayerNorms' Fisher information the last third of the blocks has at least as much as"
            " each other third, and the betas at least as much as the gammas"
        ),
        holds_from=1.0,
        fails_below=0.5,
        measure=weights.fisher_by_block_and_part,
        needs="fisher",
        make="tfmt-sweep --flagfile=fisher.flags",
    ),
)

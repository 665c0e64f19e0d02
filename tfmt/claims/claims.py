"""What a study's runs say of the papers' claims, by the rules of `rules`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tfmt.claims.comparisons import LEAST_SEEDS, Comparison, Gap
from tfmt.claims.rules import RULES, Rule
from tfmt.results import analyses
from tfmt.results.cells import ALL_SEEDS, Seeds
from tfmt.results.crossfit import check_protocol, describe_crossfit, has_halves, protocols_of
from tfmt.results.formats import Block, Table
from tfmt.results.groups import (
    PAPER_EPOCHS,
    SETTINGS,
    TASK_FIELDS,
    Group,
    describe_settings,
    differing_settings,
    group_runs,
    settings_to_tell,
)
from tfmt.results.rows import Row, annotate, is_token_task, keep_runs, none_if_missing
from tfmt.results.tables import format_rate
from tfmt.spec import TASK_NAMES, RunSpec
from tfmt.words import comma_list, counted, without_folders

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.results.predicted import Predicted

Outcome = Literal["holds", "fails", "mixed", "undecided", "not enough runs"]


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one claim.

    Attributes:
      rule: the claim's rule.
      outcome: `holds`, `fails`, `mixed`, `undecided` (collapsed runs leave it open) or `not enough runs`.
      comparisons: what it was decided by, and those that collapsed runs keep from deciding.
      gaps: what could not be compared, and why.
      settings: what the runs share.
      runs: which runs, where several groups of comparable runs were judged apart; otherwise empty.
      command: what makes the missing runs; empty if there were comparisons.
      kept: of a claim about weights what its caption must say where they are of another epoch than the scores.
      protocol: the scores that decided: the papers' (`paper`) or cross-fitted ones (`crossfit`); empty for a claim
        about weights.
      crossfit: the verdict on the same runs by cross-fitted scores, where there is one beside the papers'.
    """

    rule: Rule
    outcome: Outcome
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]
    settings: str
    runs: str
    command: str
    kept: str = ""
    protocol: str = ""
    crossfit: Verdict | None = None

    @property
    def differs(self) -> bool:
        """Whether the two protocols say different things."""
        return self.crossfit is not None and self.crossfit.outcome != self.outcome


def evaluate_claims(
    runs: pd.DataFrame,
    *,
    epoch: str = "best",
    change: pd.DataFrame | None = None,
    weights: pd.DataFrame | None = None,
    fisher: pd.DataFrame | None = None,
    protocol: str | None = None,
    roles: Seeds = ALL_SEEDS,
    predicted: Predicted | None = None,
) -> tuple[Verdict, ...]:
    """Judges every claim.

    Args:
      runs: what `read_runs` returns.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.
      change: what `analyses.tabulate_change` returns, for F1.
      weights: what `analyses.tabulate_weights` returns, for C8.
      fisher: what `analyses.tabulate_fisher` returns, for F3 and F5.
      protocol: the scores that decide: `paper`'s, `crossfit`ted ones, or None: the papers', and where runs have scores
        on halves each verdict's `crossfit` says what those would decide.
      roles: which seeds choose the learning rate, and on which of them the claims are judged.
      predicted: what the runs predicted, of that epoch, for intervals over seeds and examples; None leaves those over
        seeds alone.

    Returns:
      The verdicts in the order of `RULES`; more than one for a claim that runs decide which may not be compared with
      each other (other models, versions, batchings, ...).

    Raises:
      RequestError: supplied numbers without a column that is needed, or runs that no table can tell apart.
    """
    check_protocol(protocol)
    supplied = {"change": change, "weights": weights, "fisher": fisher}
    for name, frame in supplied.items():
        if frame is not None:
            analyses.check_columns(name, frame)
    annotated = annotate(runs, epoch)
    full = keep_runs(annotated, (row == Row("full") for row in annotated["row"]))
    kept = "".join(analyses.tell_kept_epoch(full[full["outcome"] == "scored"], epoch))
    groups_of = {
        rule.name: [
            dataclasses.replace(group, predicted=predicted)
            for group in group_runs(keep_runs(annotated, _looked_at(rule, annotated)), roles)
        ]
        for rule in RULES
        if rule.needs in ("group", "change")
    }
    if predicted is not None:
        scored = [group for rule in RULES if rule.needs == "group" for group in groups_of[rule.name]]
        predicted.load(_cells(scored, protocol))
    verdicts: list[Verdict] = []
    for rule in RULES:
        frame = supplied.get(rule.needs)
        if rule.needs != "group" and frame is None:
            verdicts.append(_judge(rule, (Gap("all", f"no {rule.needs} numbers"),), rule.make))
            continue
        if rule.needs in ("weights", "fisher"):
            assert frame is not None
            for told, part in _part(frame):
                verdicts.append(_judge(rule, tuple(rule.measure(part)), rule.make, runs=told))
            continue
        groups = groups_of[rule.name]
        extra = () if frame is None else (frame,)
        # What weights do is no score.
        first = "" if extra else protocol or "paper"
        judged = [(group, tuple(rule.measure(group.under(first), *extra))) for group in groups]
        decided = [(group, found) for group, found in judged if any(isinstance(each, Comparison) for each in found)]
        differing = differing_settings(group for group, _ in decided)
        for group, found in decided or judged[:1]:
            told = describe_settings(group, differing) if differing else ""
            # Runs without scores on halves are there all the same: no sweep makes them again.
            there = first == "crossfit" and any(isinstance(each, Comparison) for each in rule.measure(group))
            command = "" if decided or there else _command(rule, group)
            told_of = (describe_settings(group, settings_to_tell(group)), told)
            verdict = dataclasses.replace(_judge(rule, found, command, *told_of), protocol=first)
            if first == "paper" and protocol is None and has_halves(group.runs):
                beside = _judge(rule, tuple(rule.measure(group.under("crossfit"))), "", *told_of)
                verdict = dataclasses.replace(verdict, crossfit=dataclasses.replace(beside, protocol="crossfit"))
            verdicts.append(verdict)
        if not judged:
            verdicts.append(_judge(rule, (Gap("all", f"no runs of {', '.join(rule.modes)}"),), rule.make))
    return tuple(
        dataclasses.replace(verdict, kept=kept)
        if verdict.rule.needs in ("change", "weights") and verdict.comparisons
        else verdict
        for verdict in verdicts
    )


def _cells(groups: Iterable[Group], protocol: str | None) -> Iterator[tuple[Group, Row, str]]:
    """The cells of groups that may be compared, under every protocol that is asked for."""
    for group in groups:
        for view in map(group.under, protocols_of(group.runs, protocol)):
            yield from ((view, row, column) for (row, column), cell in view.cells.items() if cell.eligible)


def _part(numbers: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """An analysis' numbers, apart for runs that may not be compared with each other, with what tells those."""
    if "told" not in numbers or numbers.empty:
        return [("", numbers)]
    return [(str(told), part) for told, part in numbers.groupby("told", sort=False)]


def _looked_at(rule: Rule, runs: pd.DataFrame) -> list[bool]:
    """Which runs a rule looks at."""
    return [
        row.mode in rule.modes
        and (row.layers == "all" or (rule.blocks and row.layers.isdecimal()))
        and is_token_task(task, task_type) == rule.tokens
        for row, task, task_type in zip(runs["row"], runs["task"], runs["task_type"], strict=True)
    ]


def _judge(
    rule: Rule, found: tuple[Comparison | Gap, ...], command: str, settings: str = "", runs: str = ""
) -> Verdict:
    """The rule applied to what was measured."""
    comparisons = tuple(each for each in found if isinstance(each, Comparison))
    gaps = tuple(each for each in found if isinstance(each, Gap))
    if not comparisons:
        gaps = gaps or (Gap("all", "nothing to compare"),)
        return Verdict(rule, "not enough runs", (), gaps, settings, runs, command)
    # The share for the claim lies between these, however the comparisons would end that decide nothing.
    least = sum(each.holds is True for each in comparisons) / len(comparisons)
    most = sum(each.holds is not False for each in comparisons) / len(comparisons)
    outcomes = {_outcome(rule, share) for share in (least, most)}
    outcome = outcomes.pop() if len(outcomes) == 1 else "undecided"
    return Verdict(rule, outcome, comparisons, gaps, settings, runs, "")


def _outcome(rule: Rule, share: float) -> Outcome:
    """What a share of comparisons for the claim says of it."""
    return "holds" if share >= rule.holds_from else "fails" if share < rule.fails_below else "mixed"


def _command(rule: Rule, group: Group) -> str:
    """The sweep that adds to a group's runs what the rule lacks. Those that are there are not run again."""
    tasks = [task for task in TASK_NAMES if task in set(group.runs["task"])]
    # The paper's tasks, if any of them is here: a claim asks for no more.
    tasks = [task for task in tasks if task in rule.tasks] or tasks
    flags: dict[str, Any] = {"model": group.runs["model"].iloc[0], "task": ",".join(tasks)}
    flags |= {"mode": ",".join(rule.modes), **dict(rule.axes)}
    flags["learning_rate"] = ",".join(format_rate(rate) for rate in sorted(set(group.runs["learning_rate"])))
    seeds = list(group.seeds)
    seeds += [seed for seed in range(LEAST_SEEDS) if seed not in seeds][: max(0, LEAST_SEEDS - len(seeds))]
    flags["seed"] = ",".join(map(str, sorted(seeds)))
    if group.settings["epochs"] != PAPER_EPOCHS:
        flags["epochs"] = group.settings["epochs"]
    shared = {name: group.settings[name] for name in SETTINGS if name in RunSpec.model_fields}
    for name in (
        "revision",
        "data_dir",
        "keep",
        "outlier_pool",
        "fisher_examples",
        *sorted(TASK_FIELDS & set(RunSpec.model_fields)),
    ):
        values = set(map(none_if_missing, group.runs[name])) - {RunSpec.model_fields[name].default}
        if len(values) == 1:
            shared[name] = values.pop()
    for name, value in shared.items():
        if value != RunSpec.model_fields[name].default:
            flags[name] = comma_list(value) if isinstance(value, tuple) else value
    return shlex.join(["tfmt-sweep", *(f"--{name}={value}" for name, value in flags.items())])


def tabulate_claims(
    verdicts: tuple[Verdict, ...],
    epoch: str = "best",
    broken: Iterable[str] = (),
    notes: Iterable[str] = (),
    roles: Seeds = ALL_SEEDS,
) -> Table:
    """Verdicts as a table that `format_tables` writes: the verdicts, their numbers, what is missing, the rules.

    Args:
      verdicts: what `evaluate_claims` returned.
      epoch: what it was asked for, which the caption tells.
      broken: what `read_runs` could not read (`attrs["broken"]`).
      notes: further lines for the caption, from `tell_left_out`.
      roles: what `evaluate_claims` was asked for.
    """
    both = any(verdict.crossfit for verdict in verdicts)
    summary, missing = [], []
    numbers: dict[str, list[tuple[str, ...]]] = {"": [], "crossfit": []}
    records: list[dict[str, Any]] = []
    for verdict in verdicts:
        name = verdict.rule.name
        beside = [_tell_beside(verdict)] if both else []
        summary.append((name, verdict.outcome, *beside, *_counts(verdict), verdict.rule.text, verdict.runs))
        for each in (verdict, verdict.crossfit):
            if each is None:
                continue
            records += _record(each, epoch)
            block = numbers["crossfit" if each is verdict.crossfit else ""]
            block += [(name, one.task, one.compared, *_texts(one), each.runs) for one in each.comparisons]
        told = _tell_missing(verdict)
        missing += [(name, *line) for line in told]
        if verdict.crossfit:
            missing += [
                (f"{name}, cross-fitted", *line) for line in _tell_missing(verdict.crossfit) if line not in told
            ]
    rules = tuple(
        (rule.name, rule.decided_by, _share(rule.holds_from), f"below {_share(rule.fails_below)}") for rule in RULES
    )
    heads = (
        "claim",
        "verdict",
        *(["cross-fitted"] if both else []),
        "for it",
        "clearly",
        "collapsed",
        "what it says",
        "runs",
    )
    compared = ("claim", "task", "compared", "value", "95 % interval", "over", "bound", "seeds", "for it", "runs")
    blocks = [
        _block("", heads, summary),
        _block("The numbers", compared, numbers[""]),
        _block("The numbers, cross-fitted", compared, numbers["crossfit"]),
        Block("Missing, or collapsed", ("claim", "what", "the command that makes it"), tuple(missing)),
        Block("The rules, fixed before any run", ("claim", "decided by", "holds from", "fails"), rules),
    ]
    alone = any(verdict.protocol == "crossfit" for verdict in verdicts)
    chosen = "cross-fitted" if alone else "on the development split that chose it"
    over = "seeds" if roles.choose_on is None else f"seeds {', '.join(map(str, roles.choose_on))}"
    judged = f" Judged on seeds {', '.join(map(str, roles.report_on))}." if roles.report_on is not None else ""
    caption = (
        f"Scores are each run's {epoch} epoch's, at the learning rate with the best mean over {over}, {chosen}.{judged}"
        " Margins are tfmt's; the papers name none.",
        *([describe_crossfit(epoch, _METRICS)] if both or alone else []),
        *([_tell_differing(verdicts)] if both else []),
        "For it: comparisons whose mean reaches its bound. Clearly: those, for or against, whose whole interval lies on"
        " that side of the bound.",
        *_tell_kept(verdicts),
        *([_COLLAPSED] if any(each.collapsed for verdict in verdicts for each in verdict.comparisons) else []),
        f"Interval: 95 %, of comparisons of scores for other seeds and other examples, from what the runs predicted;"
        f" else by Student's t over seeds alone. Seeds are those that both sides share, at least {LEAST_SEEDS}.",
        *_tell_not_predicted(verdicts),
        "Several comparisons are made at once, without correction: read a single clear one with care.",
        *(f"Runs: {settings}." for settings in dict.fromkeys(verdict.settings for verdict in verdicts) if settings),
        *notes,
        *(without_folders(f"Not read: {message}", 2) for message in broken),
    )
    return Table(
        "claims", "Claims of the papers", caption, tuple(block for block in blocks if block.rows), tuple(records)
    )


def _tell_beside(verdict: Verdict) -> str:
    """What cross-fitted scores decide, beside the papers' verdict."""
    if verdict.crossfit is None:
        return "-"
    share = _counts(verdict.crossfit)[0]
    told = verdict.crossfit.outcome + (f", {share}" if share != "-" else "")
    return told + (" (differs)" if verdict.differs else "")


def _counts(verdict: Verdict) -> tuple[str, str, str]:
    """How many comparisons are for the claim, how many clear, how many collapsed."""
    count = len(verdict.comparisons)
    decisive = [each for each in verdict.comparisons if not each.collapsed]
    holding, clear = (sum(each.holds is True for each in decisive), sum(each.clear for each in decisive))
    told = (f"{holding} of {len(decisive)}", f"{clear} of {len(decisive)}") if decisive else ("-", "-")
    return *told, f"{count - len(decisive)} of {count}" if count > len(decisive) else "-"


def _record(verdict: Verdict, epoch: str) -> list[dict[str, Any]]:
    """A verdict's numbers, a mapping a comparison; without comparisons one all the same."""
    record = {"claim": verdict.rule.name, "text": verdict.rule.text, "rule": verdict.rule.decided_by}
    record |= {"protocol": verdict.protocol, "verdict": verdict.outcome, "runs": verdict.runs}
    record |= {"settings": verdict.settings, "epoch": epoch, "command": verdict.command, "kept": verdict.kept}
    return [record | {column: getattr(each, column) for column in _RECORDED} for each in verdict.comparisons] or [
        record
    ]


def _tell_missing(verdict: Verdict) -> list[tuple[str, str]]:
    """What is missing or collapsed, and the command that makes it."""
    told = [(_tell_gaps(verdict), verdict.command or "-")] if verdict.gaps else []
    return told + [(lost, "-") for lost in [_tell_collapsed(verdict)] if lost]


def _tell_differing(verdicts: Iterable[Verdict]) -> str:
    """Where the protocols say different things."""
    differing = [
        f"{each.rule.name} ({each.outcome}; cross-fitted {each.crossfit.outcome}"
        + (f"; {each.runs})" if each.runs else ")")
        for each in verdicts
        if each.crossfit and each.differs
    ]
    where = f"The protocols differ on {', '.join(differing)}." if differing else "The protocols differ on no claim."
    return f"{where} Cross-fitted: a dash where weights decide, which are no scores, or runs have no scores on halves."


_METRICS = ("correlations", "F1")  # what claims' scores may be that are no means over examples
_MOST_REASONS = 3
_RECORDED = ("task", "compared", "unit", "value", "low", "high", "over", "examples", "not_predicted", "bound", "seeds",
             "holds", "clear", "collapsed")  # fmt: skip
_COLLAPSED = (
    "Collapsed: a run that the comparison reads predicts one class only, or a constant. Two models that learned nothing"
    " are on par whatever was tuned, so such a comparison decides nothing. Where its outcome could change the verdict,"
    " the claim is undecided. Other learning rates may not collapse."
)


def _tell_kept(verdicts: Iterable[Verdict]) -> list[str]:
    """Which claims were decided by weights of another epoch than the one whose scores count."""
    told = [verdict for verdict in verdicts if verdict.kept]
    names = ", ".join(dict.fromkeys(verdict.rule.name for verdict in told))
    return [f"{names}: {told[0].kept}"] if told else []


def _tell_not_predicted(verdicts: Iterable[Verdict]) -> list[str]:
    """Which comparisons of scores have an interval over seeds alone, and why."""
    judged = [each for verdict in verdicts for each in (verdict, verdict.crossfit) if each]
    alone = [one for verdict in judged for one in verdict.comparisons if one.not_predicted]
    if not alone:
        return []
    reasons = list(dict.fromkeys(one.not_predicted for one in alone))
    more = f"; and {len(reasons) - _MOST_REASONS} reasons more" if len(reasons) > _MOST_REASONS else ""
    told = "; ".join(reasons[:_MOST_REASONS]) + more
    return [
        f"Over seeds alone, as what the runs predicted is not at hand: {counted(len(alone), 'comparison')} ({told})."
    ]


def _tell_collapsed(verdict: Verdict) -> str:
    """What collapsed on which task."""
    tasks: dict[str, list[str]] = {}
    for each in verdict.comparisons:
        tasks.setdefault(each.task, []).extend(each.collapsed)
    return "; ".join(f"collapsed on {task}: {', '.join(dict.fromkeys(rows))}" for task, rows in tasks.items() if rows)


def _tell_gaps(verdict: Verdict) -> str:
    """What is missing, each reason once; of a claim that other tasks decide, the tasks left out."""
    if verdict.comparisons:
        return "left out: " + ", ".join(dict.fromkeys(gap.task for gap in verdict.gaps))
    tasks: dict[str, list[str]] = {}
    for gap in verdict.gaps:
        tasks.setdefault(gap.reason, []).append(gap.task)
    reasons: dict[str, list[str]] = {}
    for reason, names in tasks.items():
        reasons.setdefault(", ".join(dict.fromkeys(names)), []).append(reason)
    return "; ".join((f"{names}: " if names != "all" else "") + ", ".join(told) for names, told in reasons.items())


def _block(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Block:
    """A block; `collapsed` and `runs` are left out where they say nothing."""
    kept = [
        i
        for i, column in enumerate(columns)
        if column not in ("collapsed", "runs") or any(row[i] not in ("", "-") for row in rows)
    ]
    return Block(title, tuple(columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _share(share: float) -> str:
    return "all" if share == 1 else f"{100 * share:.0f} %"


def _texts(each: Comparison) -> tuple[str, str, str, str, str, str]:
    """A comparison as text: value, interval, what that is over, bound, seeds, verdict."""
    signed = each.unit in ("points", "points a step")
    unit = {"points": "", "points a step": " a step", "times": " times", "index": ""}[each.unit]

    def tell(value: float) -> str:
        if signed:
            return f"{value:+.1f}" if abs(value) >= 0.05 else "0.0"
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"

    interval = "-" if each.low is None or each.high is None else f"{tell(each.low)} to {tell(each.high)}"
    over = each.over.removeprefix("t over ") + (f", N={each.examples:,}" if each.examples else "")
    if interval == "-" and each.over.startswith("t over "):
        over = "-"  # of a single seed
    told = {True: "yes", False: "no", None: "collapsed"}
    judged = told[each.holds] + (", clearly" if each.clear else "")
    return tell(each.value) + unit, interval, over, tell(each.bound), str(each.seeds), judged

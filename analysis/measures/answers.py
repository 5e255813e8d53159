"""The answers to the questions of a run's plan: yes, no, or open; everything else that a run shows is exploratory.

All questions of a plan are one family. A "yes" has p < 5% after Holm's correction over it: of the paired t-test on logs
for more, less and different, of two one-sided tests for equal. A "no" is as sure as that, by Holm or by Bonferroni over
the family: the opposite was found, or (of more, less and different) equality within the margin, or (of equal) a
difference beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import interval, p_value
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.reading.matrix import UNDER_FLOOR
from forward_influence.analysis.reading.pairing import align, measured_rule
from forward_influence.analysis.statistics.equivalence import Equivalence, equivalence, percent
from forward_influence.analysis.statistics.inference import CONFIDENCE, holm
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run
from forward_influence.storage.study_plan import StudyPlan

YES, NO, OPEN, UNANSWERED = "yes", "no", "open", "not answered"
_EXPECTED = {"more": "matter more than", "less": "matter less than", "different": "matter more or less than"}


@dataclass(frozen=True)
class PlannedAnswer:
    """One question in one zone, and what the run says.

    Attributes:
        number: of the question in the plan, from 1.
        question: in words.
        rule, over, zone, budget, expect, margin: as planned.
        found: the ratio with its intervals; None where it is not answered.
        p: after Holm's correction over the plan; NaN where it is not answered.
        verdict: `YES`, `NO`, `OPEN` or `UNANSWERED`.
        because: the reason in words.
    """

    number: int
    question: str
    rule: str
    over: str
    zone: str
    budget: str
    expect: str
    margin: float
    found: Equivalence | None
    p: float
    verdict: str
    because: str


def answers(run: Run, *, zones: pd.DataFrame | None = None, cluster: str | None = None) -> list[PlannedAnswer]:
    """What a run says to the questions of its plan, in the plan's order; none where it had no plan.

    Args:
        zones: curves of the run in near, middle and far, where they were read before.
        cluster: field of the documents whose groups are the unit.

    Raises:
        UsageError: the plan names a rule or budget that the run lacks.
        ForwardInfluenceError: nothing is measured yet.
    """
    plan = run.plan
    if plan is None:
        return []
    frame = load_zones(run, cluster=cluster) if zones is None else zones
    known, budgets = list(frame["selector"].unique()), list(map(str, frame["budget"].unique()))
    measured = frame["document"].nunique()
    if measured < plan.documents:
        reason = f"{measured} of the {plan.documents} planned documents are measured"
        return [_answer(plan, at, budgets, UNANSWERED, reason) for at in _places(plan)]
    found = []
    for number, zone in _places(plan):
        question = plan.questions[number - 1]
        budget = plan.budget_of(question, budgets)
        part = frame[(frame["budget"] == budget) & (frame["zone"] == zone)]
        pair = [part[part["selector"] == measured_rule(name, known)] for name in (question.rule, question.over)]
        found.append(_found(pair[0], pair[1], plan.margin_of(question), cluster is not None))
    tests = [
        math.nan if one.reason or flagged else one.p if plan.questions[at[0] - 1].expect == "equal" else one.p_different
        for at, (one, flagged) in zip(_places(plan), found, strict=True)
    ]
    made = []
    for at, (one, flagged), p in zip(_places(plan), found, holm(tests).tolist(), strict=True):
        question = plan.questions[at[0] - 1]
        if one.reason or flagged:
            because = one.reason or f"an influence is {UNDER_FLOOR}"
            made.append(_answer(plan, at, budgets, UNANSWERED, because, one))
            continue
        verdict, because = _verdict(question.expect, one, p, len(tests))
        made.append(_answer(plan, at, budgets, verdict, because, one, p))
    return made


def _places(plan: StudyPlan) -> list[tuple[int, str]]:
    """Every question in every zone that it asks about: (number from 1, zone)."""
    return [(n, zone) for n, question in enumerate(plan.questions, 1) for zone in plan.zones_of(question)]


def _found(a: pd.DataFrame, b: pd.DataFrame, margin: float, clustered: bool) -> tuple[Equivalence, bool]:
    """A pair of rules in a zone, and whether one of them is under the noise-floor flag."""
    both = align(a, b)
    if both is None:
        raise UsageError("the plan's rules have no document in common; measure the run to its end")
    first, second = both
    groups = first.clusters if clustered else None
    flagged = bool(first.below_floor[0] or second.below_floor[0])
    return equivalence(first.kl[:, 0], second.kl[:, 0], margin, groups), flagged


def _verdict(expect: str, found: Equivalence, p: float, family: int) -> tuple[str, str]:
    """The answer and the reason.

    Args:
        p: after Holm's correction.
        family: how many tests there are.
    """
    alpha = 1 - CONFIDENCE
    within = f"equal within {percent(found.margin)}"
    told, more = p < alpha, found.ratio > 1
    side = "more" if more else "less"
    if expect == "equal":
        if told:
            return YES, within
        if found.p_beyond <= alpha / family:
            return NO, f"{side} by over {percent(found.margin)}"
        apart = found.finding in ("more", "less")
        if apart:
            return OPEN, f"{side}, but perhaps by less than {percent(found.margin)}"
        return OPEN, f"not told apart, nor surely {within}"
    close = found.p <= alpha / family
    if told and expect in (side, "different"):
        return YES, f"{side}, but {within}" if close else side
    if told:
        return NO, f"the opposite: {side}"
    return (NO, within) if close else (OPEN, "not told apart")


def _answer(
    plan: StudyPlan,
    at: tuple[int, str],
    budgets: Sequence[str],
    verdict: str,
    because: str,
    found: Equivalence | None = None,
    p: float = math.nan,
) -> PlannedAnswer:
    number, zone = at
    question = plan.questions[number - 1]
    margin = plan.margin_of(question)
    asked = (
        f"Is {question.rule} equal to {question.over} within {percent(margin)}"
        if question.expect == "equal"
        else f"Does {question.rule} {_EXPECTED[question.expect]} {question.over}"
    )
    return PlannedAnswer(
        number,
        question.ask or f"{asked}, {zone}?",
        *(question.rule, question.over, zone, plan.budget_of(question, budgets), question.expect, margin),
        *(found, p, verdict, because),
    )


def plan_answers(runs: Mapping[str, Run], zones: pd.DataFrame, *, cluster: str | None = None) -> pd.DataFrame:
    """The answers to the plans of runs, with the run's name in the column `run`; empty where none had a plan.

    Args:
        runs: by name.
        zones: their curves in near, middle and far, under these names.
    """
    tables = [
        answers_table(answers(run, zones=zones[zones["run"] == name], cluster=cluster)).assign(run=name)
        for name, run in runs.items()
    ]
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def sentence(answer: PlannedAnswer) -> str:
    """ "Yes, more: far, attention has 3.5 [2.6, 4.8] times the influence of random (p = 0.001 after Holm)."."""
    if answer.found is None or answer.verdict == UNANSWERED:
        return f"Not answered: {answer.because}."
    found = answer.found
    return (
        f"{answer.verdict.capitalize()}, {answer.because}: {answer.zone}, {answer.rule} has "
        f"{interval(found.ratio, found.low, found.high)} times the influence of {answer.over} "
        f"(p {_compared(answer.p)} after Holm)."
    )


def _compared(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def answers_table(found: Sequence[PlannedAnswer]) -> pd.DataFrame:
    """Answers as rows: the attributes of `PlannedAnswer`, `found` as its numbers."""
    rows: list[dict[str, Any]] = []
    for one in found:
        e = one.found
        numbers = {"ratio": math.nan, "ratio_low": math.nan, "ratio_high": math.nan, "equal_low": math.nan}
        numbers |= {"equal_high": math.nan, "n": 0}
        if e is not None:
            numbers = {"ratio": e.ratio, "ratio_low": e.low, "ratio_high": e.high, "equal_low": e.equal_low}
            numbers |= {"equal_high": e.equal_high, "n": e.n}
        about = {name: value for name, value in vars(one).items() if name not in ("found", "p", "verdict", "because")}
        rows.append({**about, **numbers, "p_holm": one.p, "verdict": one.verdict, "because": one.because})
    return pd.DataFrame(rows)

"""What every rule of a segment selects, and what is worth saying about it: ties, overlaps, slow rules."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from forward_influence.measurement.conditions import RuleCondition
from forward_influence.measurement.request import Request
from forward_influence.measurement.slices import Slice, sliced
from forward_influence.selectors import Selector, chosen, final_scores
from forward_influence.selectors.base import tied_share
from forward_influence.selectors.places import home
from forward_influence.selectors.selection import Candidates, Selection
from forward_influence.tracing.trace import Trace

#: A rule that takes longer than this, and than the pass over the context, is named.
_SLOW_SECONDS = 1.0
#: Share of a selection decided by ties from which on a rule is named.
_MANY_TIES = 0.01


@dataclass(frozen=True)
class Choice:
    """What one condition of a rule selects.

    Attributes:
        whole: in all layers and heads.
        part: the slice of it that is ablated.
        notes: what its row says beside the rule's parameters: the rule's own notes, and `ties`, the share of `whole`
            that ties decided, where there are any.
    """

    whole: Selection
    part: Slice
    notes: dict[str, Any]


@dataclass
class Choices:
    """What all rules of a segment select, in their conditions' order.

    Attributes:
        rules: by specification.
        seconds, ties: by specification: spent on scores and selections; the largest share decided by ties.
        tensors: selections and scores, named by the rows that they belong to; empty unless asked for.
    """

    found: list[Choice] = field(default_factory=list)
    rules: dict[str, Selector] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    ties: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def messages(self, context_seconds: float) -> list[str]:
        """Rules that took longer than the pass over the context, and those that left much to ties, with their place."""
        texts = []
        for spec, rule in self.rules.items():
            if self.seconds[spec] > max(_SLOW_SECONDS, context_seconds):
                took = f"took {self.seconds[spec]:.0f} s, the context pass {context_seconds:.0f} s"
                texts.append(f"rule {spec!r}{home(rule)} {took}")
            if self.ties.get(spec, 0.0) >= _MANY_TIES:
                left = f"left {self.ties[spec]:.0%} of what it selected to ties, which go to the earlier token"
                texts.append(f"rule {spec!r}{home(rule)} {left}")
        return texts


def choose_all(
    trace: Trace, conditions: Sequence[RuleCondition], request: Request, candidates: Candidates, first_row: int
) -> Choices:
    """Select for every condition of a rule; a rule scores once for all its budgets.

    Args:
        first_row: number of the row of the first condition, by which saved tensors are named.
    """
    choices = Choices()
    scores_of: dict[Selector, Tensor] = {}
    saved: set[tuple[int, ...] | None] = set()
    for i, condition in enumerate(conditions):
        rule, spec = condition.rule, condition.rule.spec
        begun = time.perf_counter()
        if rule not in scores_of:
            scores_of = {rule: final_scores(rule, trace)}
        is_new = i == 0 or conditions[i - 1].choice != condition.choice
        if is_new:
            number = candidates.to_choose(condition.budget, request.mode)
            whole = Selection(chosen(rule, trace, scores_of[rule], number, request.mode), trace.layers)
            notes = rule.notes(trace, number, whole.mask)
            if ties := tied_share(scores_of[rule], whole.mask, candidates):
                notes = {**notes, "ties": round(ties, 6)}
                choices.ties[spec] = max(ties, choices.ties.get(spec, 0.0))
            saved.clear()
        part = sliced(whole, request.mode, condition.layers, request.heads)
        choices.found.append(Choice(whole, part, notes))
        choices.rules[spec] = rule
        choices.seconds[spec] = choices.seconds.get(spec, 0.0) + time.perf_counter() - begun
        if request.save_selections and condition.layers not in saved:
            choices.tensors[f"selection/{first_row + i}"] = part.selection.mask.cpu()
            if is_new:
                choices.tensors[f"scores/{first_row + i}"] = _compact(scores_of[rule]).float().cpu().clone()
        saved.add(condition.layers)
    return choices


def _compact(scores: Tensor) -> Tensor:
    """Scores without the axes along which they were only expanded."""
    for axis in (0, 1):
        if scores.stride(axis) == 0:
            scores = scores.narrow(axis, 0, 1)
    return scores

"""Rules that change another rule's choice: the other one is a parameter, criticalkv:of=attention(window=32)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, at_grain, entry_counts, final_scores, remarks_of
from forward_influence.selectors.registry import parse_nested
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Modifier(Selector):
    """A rule that starts from another rule's scores. Budgets of layers and heads are the other rule's.

    Attributes:
        of: the rule whose scores are changed; its parameters in parentheses, attention(window=32).
    """

    of: str = "attention"

    def validate(self) -> None:
        """The other rule exists, draws nothing, and brings the head budgets, if there are any."""
        if self.rule.stochastic:
            raise UsageError(f"{self.name}: of={self.of} draws at random, which leaves nothing to build on")
        if self.heads != "equal":
            raise UsageError(f"{self.name}: give the head budgets to the other rule, of={self.of}(heads={self.heads})")
        if self.per != "entry" and parse_nested(self.of).per != "entry":
            raise UsageError(f"{self.name}: give the grain once, per={self.per} or in of={self.of}")

    @property
    def rule(self) -> Selector:
        """The other rule, at this rule's grain."""
        rule = parse_nested(self.of)
        return dataclasses.replace(rule, per=self.per) if self.per != "entry" and rule.heads == "equal" else rule

    @property
    def inner(self) -> tuple[Selector, ...]:
        """The other rule."""
        return (self.rule,)

    @property
    def divides_by(self) -> Selector:
        """The other rule."""
        return self.rule

    @property
    def needs(self) -> frozenset[str]:
        """Those of the other rule."""
        return self.rule.needs

    @property
    def observation_window(self) -> int:
        """That of the other rule."""
        return self.rule.observation_window

    @property
    def own_budgets(self) -> bool:
        """Whether the other rule has budgets of its own."""
        return self.rule.own_budgets

    @property
    def parameters(self) -> dict[str, Any]:
        """With `of_spec`, the other rule as rows of its own name it, however `of` was typed."""
        return {**super().parameters, "of_spec": parse_nested(self.of).spec}

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """The other rule's, its heads' budgets included."""
        return entry_counts(self.rule, trace, self.base(trace), number)

    def remarks(self, number: int, candidates: Candidates) -> tuple[str, ...]:
        """The other rule's."""
        return remarks_of(self.rule, number, candidates)

    def base(self, trace: Trace) -> Tensor:
        """The other rule's scores, (layers, kv_heads, tokens), at this rule's grain."""
        rule = self.rule
        return trace.memo(("base", rule), lambda: at_grain(final_scores(rule, trace), self.per).expand(trace.shape))

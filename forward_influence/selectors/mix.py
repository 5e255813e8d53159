"""Rules made of other rules, by name: mix:0.9*attention+0.1*entropy, product:attention*entropy.

Terms are put on one scale first: per layer and head, their scores sum to 1 over the candidates (scores that are
negative anywhere among a layer's and head's candidates are first raised so that the lowest is 0). Parameters of a term
are in parentheses: mix:0.5*attention(window=32)+0.5*surprisal.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, final_scores
from forward_influence.selectors.registry import parse_nested, selector, split_outside
from forward_influence.tracing.trace import Trace


def share(rule: Selector, trace: Trace) -> Tensor:
    """A rule's scores (layers, kv_heads, tokens), not negative and summing to 1 over the candidates; 0 elsewhere."""

    def compute() -> Tensor:
        scores = final_scores(rule, trace).double()
        inside = scores[..., trace.first : trace.last]
        if bool(torch.isinf(inside).any()):
            raise UsageError(f"{rule.spec} gives infinite scores, which cannot be combined with others")
        raised = inside - inside.amin(-1, keepdim=True).clamp_max(0)
        total = raised.sum(-1, keepdim=True)
        even = torch.full_like(raised, 1 / raised.shape[-1])
        result = torch.zeros_like(scores)
        result[..., trace.first : trace.last] = torch.where(total > 0, raised / total, even)
        return result

    return trace.memo(("share", rule), compute)


@dataclass(frozen=True, kw_only=True)
class _Combined(Selector):
    """A rule made of others.

    Attributes:
        terms: the other rules.
    """

    terms: str = ""
    positional = "terms"

    def validate(self) -> None:
        """Terms that exist; none that draws at random, for its draws would all be one."""
        for rule in self.rules:
            if rule.stochastic:
                raise UsageError(
                    f"{self.name}: {rule.name} draws at random and cannot be combined; measure it by itself"
                )
            if rule.own_budgets:
                raise UsageError(
                    f"{self.name}: {rule.spec} has budgets of its own per layer or head; a term cannot bring them along"
                )

    @property
    def rules(self) -> list[Selector]:
        """The terms, at this rule's grain unless they have their own."""
        rules = [parse_nested(text) for text in self._texts()]
        return [dataclasses.replace(r, per=self.per) if r.per == "entry" and self.per != "entry" else r for r in rules]

    @property
    def inner(self) -> tuple[Selector, ...]:
        """The terms."""
        return tuple(self.rules)

    def _texts(self) -> list[str]:
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Those of all terms."""
        return frozenset().union(*(rule.needs for rule in self.rules))

    @property
    def observation_window(self) -> int:
        """The largest of all terms."""
        return max(rule.observation_window for rule in self.rules)


@selector("mix", source="weighted sum of shares")
@dataclass(frozen=True, kw_only=True)
class Mix(_Combined):
    """A weighted sum of rules, mix:0.9*attention+0.1*entropy; each term sums to 1 over the candidates.

    Attributes:
        terms: weight*rule, joined by +; a weight may be left out (1) or negative; parameters in parentheses.
    """

    example = "mix:0.9*attention+0.1*entropy"

    def _texts(self) -> list[str]:
        return [name for _, name in self.weighted()]

    def weighted(self) -> list[tuple[float, str]]:
        """(weight, rule) of each term.

        Raises:
            UsageError: no term, or a weight that is no number.
        """
        result = []
        for term in split_outside(self.terms, "+"):
            first, *rest = split_outside(term.strip(), "*")
            weight, name = (first, "*".join(rest)) if rest else ("1", first)
            try:
                value = float(weight)
            except ValueError:
                value = math.nan
            if not math.isfinite(value) or not name.strip():
                raise UsageError(f"{self.name}: {term.strip()!r} is not weight*rule; write 0.9*attention+0.1*entropy")
            result.append((value, name.strip()))
        return result

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        pairs = zip(self.weighted(), self.rules, strict=True)
        return torch.stack([weight * share(rule, trace) for (weight, _), rule in pairs]).sum(0)


@selector("product", source="product of shares")
@dataclass(frozen=True, kw_only=True)
class Product(_Combined):
    """A product of rules, product:attention*entropy; each factor sums to 1 over the candidates.

    Attributes:
        terms: rules, joined by *; parameters in parentheses.
    """

    example = "product:attention*entropy"

    def _texts(self) -> list[str]:
        texts = [text.strip() for text in split_outside(self.terms, "*")]
        if not all(texts):
            raise UsageError(f"{self.name}: {self.terms!r} is not rule*rule; write attention*entropy")
        return texts

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return torch.stack([share(rule, trace) for rule in self.rules]).prod(0)

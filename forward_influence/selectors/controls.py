"""Rules that know nothing about importance: what every other rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, entry_counts, final_scores, remarks_of
from forward_influence.selectors.registry import parse_nested, selector
from forward_influence.selectors.selection import Candidates, top
from forward_influence.tracing.trace import Trace


@selector("random", stochastic=True, source="control")
@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Uniform at random: every entry for itself, or with per=token the same tokens everywhere.

    Attributes:
        seed: of this draw; a run averages several.
    """

    seed: int = 0

    def scores(self, trace: Trace) -> Tensor:
        """Of the shape of the grain: averaging many draws would leave nothing to rank."""
        layers, heads, n = trace.shape
        shape = {"entry": (layers, heads, n), "layer": (layers, 1, n), "token": (1, 1, n)}[self.per]
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


@selector("recent", source="control")
@dataclass(frozen=True, kw_only=True)
class Recent(Selector):
    """The latest candidates."""

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return torch.arange(trace.n, dtype=torch.float32)


@selector("first", source="control")
@dataclass(frozen=True, kw_only=True)
class First(Selector):
    """The earliest candidates."""

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return -torch.arange(trace.n, dtype=torch.float32)


@selector("position-matched", stochastic=True, source="control")
@dataclass(frozen=True, kw_only=True)
class PositionMatched(Selector):
    """Another rule's selection with its tokens permuted within strata of neighbouring candidates.

    One permutation serves all layers and heads: where in the context is selected, how many, and how much heads overlap
    all stay; only which tokens changes.

    Attributes:
        of: the other rule; its parameters in parentheses, attention(window=32).
        stratum: candidates per stratum.
        seed: of this draw.
    """

    of: str = "attention"
    stratum: int = 32
    seed: int = 0

    def validate(self) -> None:
        """The other rule exists and is another."""
        if self.stratum < 2:
            raise UsageError(f"{self.name}: stratum={self.stratum} permutes nothing; give at least 2")
        if isinstance(self.rule, PositionMatched):
            raise UsageError(f"{self.name}: of={self.of} is itself position-matched")
        if self.per != "entry" and self.rule.per != self.per:
            raise UsageError(f"{self.name}: give the grain to the matched rule, of={self.of}(per={self.per})")
        if self.heads != "equal":
            raise UsageError(
                f"{self.name}: give the head budgets to the matched rule, of={self.of}(heads={self.heads})"
            )

    @property
    def rule(self) -> Selector:
        """The matched rule."""
        return parse_nested(self.of)

    @property
    def inner(self) -> tuple[Selector, ...]:
        """The matched rule."""
        return (self.rule,)

    @property
    def needs(self) -> frozenset[str]:
        """Those of the matched rule."""
        return self.rule.needs

    @property
    def observation_window(self) -> int:
        """That of the matched rule."""
        return self.rule.observation_window

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens): the matched rule's ranks, unique, so that ties move with their tokens."""
        return self._ranks(trace)[..., self.permutation(trace).to(trace.tokens.device)]

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """The matched rule's, its heads' budgets included."""
        return entry_counts(self.rule, trace, self._matched(trace), number)

    def remarks(self, number: int, candidates: Candidates) -> tuple[str, ...]:
        """The matched rule's."""
        return remarks_of(self.rule, number, candidates)

    @property
    def parameters(self) -> dict[str, Any]:
        """With `of_spec`, the matched rule as rows of its own name it, however `of` was typed."""
        return {**super().parameters, "of_spec": self.rule.spec}

    def notes(self, trace: Trace, number: int, mask: Tensor) -> dict[str, Any]:
        """`overlap`: the share of what was chosen that the matched rule chooses too."""
        candidates = Candidates(trace.n, trace.first, trace.last)
        original = top(self._matched(trace), candidates, self.counts(trace, self._matched(trace), number))
        both = (mask & original).sum() / original.sum()
        return {"overlap": round(float(both), 6)}

    def _matched(self, trace: Trace) -> Tensor:
        return trace.memo(("matched", self.of), lambda: final_scores(self.rule, trace))

    def _ranks(self, trace: Trace) -> Tensor:
        def compute() -> Tensor:
            order = self._matched(trace).sort(dim=-1, descending=True, stable=True).indices
            places = -torch.arange(trace.n, device=order.device, dtype=torch.float64).expand_as(order)
            return torch.zeros(trace.shape, dtype=torch.float64, device=order.device).scatter(-1, order, places)

        return trace.memo(("matched ranks", self.of), compute)

    def permutation(self, trace: Trace) -> Tensor:
        """(tokens,) int64: token i gets the score of token permutation[i]."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.arange(trace.n)
        for start in range(trace.first, trace.last, self.stratum):
            size = min(self.stratum, trace.last - start)
            order[start : start + size] = start + torch.randperm(size, generator=generator)
        return order

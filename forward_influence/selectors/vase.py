"""VaSE (arXiv:2606.03928): values of wide range are kept, the others are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, at_grain
from forward_influence.selectors.mix import share
from forward_influence.selectors.registry import parse_nested, selector
from forward_influence.selectors.stages import in_two_stages
from forward_influence.tracing.trace import Trace


@selector("vase", stochastic=True, source="VaSE, arXiv:2606.03928")
@dataclass(frozen=True, kw_only=True)
class ValueRange(Selector):
    """Entries whose value has the widest range first, the rest drawn in proportion to an attention score.

    Of a budget of K, the K/4 entries of the largest max_d v_d - min_d v_d are taken; the others are drawn without
    replacement with probability proportional to the score of `of`, which is done by adding Gumbel noise to its
    logarithm. The paper's sinks are what a run protects anyway.

    Attributes:
        of: the rule in proportion to whose scores entries are drawn; its parameters in parentheses.
        share: of the budget that goes by the range of values.
        seed: of this draw; a run averages several.
    """

    of: str = "attention"
    share: float = 0.25
    seed: int = 0

    def validate(self) -> None:
        """A share of 0 to 1, a rule that draws nothing and divides its budget evenly."""
        if not 0 <= self.share <= 1:
            raise UsageError(f"{self.name}: share={self.share} lies outside 0 to 1")
        if self.rule.stochastic or self.rule.own_budgets:
            raise UsageError(f"{self.name}: of={self.of} draws at random or has budgets of its own; give another rule")
        if self.heads != "equal":
            raise UsageError(f"{self.name}: what is drawn is not comparable between heads; leave out heads=adaptive")

    @property
    def rule(self) -> Selector:
        """The rule in proportion to whose scores entries are drawn."""
        return parse_nested(self.of)

    @property
    def inner(self) -> tuple[Selector, ...]:
        """That rule."""
        return (self.rule,)

    @property
    def needs(self) -> frozenset[str]:
        """Those of the other rule."""
        return self.rule.needs

    @property
    def observation_window(self) -> int:
        """That of the other rule."""
        return self.rule.observation_window

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens): minus the budget at which an entry is chosen."""
        values = [trace.values(i).double() for i in range(len(trace.layers))]
        ranges = at_grain(torch.stack([v.amax(-1) - v.amin(-1) for v in values]), self.per)
        chances = at_grain(share(self.rule, trace), self.per)
        noise = torch.rand(chances.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        gumbel = -(-noise.clamp_min(1e-300).log()).log()
        drawn = chances.log() + gumbel.to(chances.device)
        return in_two_stages(ranges.expand(trace.shape), drawn.expand(trace.shape), self.share, trace)

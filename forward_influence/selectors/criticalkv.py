"""CriticalKV (arXiv:2502.03805): half of a budget by another rule, half weighed by values in the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import at_grain
from forward_influence.selectors.modifier import Modifier
from forward_influence.selectors.output_norms import output_norms
from forward_influence.selectors.registry import selector
from forward_influence.selectors.stages import in_two_stages
from forward_influence.tracing.trace import Trace


@selector("criticalkv", source="CriticalKV, arXiv:2502.03805")
@dataclass(frozen=True, kw_only=True)
class CriticalKV(Modifier):
    """Half of a budget by the score s of another rule, the rest by (s + epsilon) ||W_O v||_1, mean over a group.

    W_O is the layer's output projection, of the columns of each query head. With heads=adaptive in `of` the other rule
    divides a layer's budget between heads, as CriticalAdaKV does. kvpress counts pinned tokens in the first half.

    Attributes:
        of: the rule whose score is s; its parameters in parentheses.
        share: of the budget that goes by s alone.
        epsilon: added to s before it is weighed.
    """

    share: float = 0.5
    epsilon: float = 1e-4

    def validate(self) -> None:
        """As of every modifier; a share of 0 to 1, no negative epsilon."""
        super().validate()
        if not 0 <= self.share <= 1 or self.epsilon < 0:
            raise UsageError(f"{self.name}: share lies in 0 to 1, epsilon is 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """Those of the other rule, and the output projection."""
        return self.rule.needs | {"output_projection"}

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens): minus the budget at which an entry is chosen."""
        base = self.base(trace)
        second = at_grain(self.weighed(trace), self.per).expand(trace.shape)
        return in_two_stages(base, second, self.share, trace)

    def weighed(self, trace: Trace) -> Tensor:
        """(s + epsilon) ||W_O v||_1, (layers, kv_heads, tokens)."""
        norms = torch.stack([output_norms(trace, layer, 1).mean(1) for layer in range(len(trace.layers))])
        return (self.base(trace) + self.epsilon) * norms

"""CapKV (arXiv:2604.25975): leverage of values, weighed by how keys lie to the mean query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.expected_attention import MOST_FUTURE, future_query
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("capkv", source="CapKV, arXiv:2604.25975")
@dataclass(frozen=True, kw_only=True)
class Capacity(Selector):
    """w v^T A^-1 v with A = I + sum of w v v^T, w = exp(tau cos(k, mean query)): what the others cannot express.

    As kvpress' CapPress, written by the paper's author: the paper has a plain dot product where cosines are taken; the
    mean query is that of tokens from the 5th on, before the rotary embedding, turned by the mean rotation over the next
    positions; w is divided by its largest value in a head; mean over a group. Sinks rank first.

    Attributes:
        tau: sharpness of the weights.
        future: how many positions after the context.
        sinks: first tokens, which rank before all others and are no part of A.
        epsilon: added to the weights in A.
    """

    tau: float = 5.0
    future: int = 512
    sinks: int = 4
    epsilon: float = 1e-6

    def validate(self) -> None:
        """Some future, nothing negative."""
        if not 1 <= self.future <= MOST_FUTURE or min(self.sinks, self.epsilon, self.tau) < 0:
            raise UsageError(f"{self.name}: future is 1 to {MOST_FUTURE}; tau, sinks and epsilon are 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """Moments of the queries before the rotary embedding."""
        return frozenset({"query_moments"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return torch.stack([self._layer(trace, layer) for layer in range(len(trace.layers))])

    def _layer(self, trace: Trace, layer: int) -> Tensor:
        keys, values = (at_least_float32(x)[:, self.sinks :] for x in (trace.keys(layer), trace.values(layer)))
        heads = keys.shape[0]
        if not keys.shape[1]:
            return keys.new_zeros(heads, trace.n)
        anchor = future_query(trace, layer, self.future, keys).reshape(heads, -1, keys.shape[-1])
        alignment = F.normalize(keys, dim=-1)[:, None] @ F.normalize(anchor, dim=-1)[..., None]
        logits = self.tau * alignment[..., 0].clamp(-1, 1)  # (kv_heads, group, tokens)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        scaled = values[:, None] * (weights + self.epsilon).sqrt()[..., None]
        capacity = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device) + scaled.mT @ scaled
        leverage = (values[:, None].mT * torch.linalg.solve(capacity, values[:, None].mT)).sum(-2)
        scores = (weights * leverage).mean(1)
        return torch.cat([(scores.max() + 1).expand(heads, trace.n - scores.shape[1]), scores], dim=-1)

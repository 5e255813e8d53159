"""CAOTE and DropKV: how far an attention output moves when one entry alone goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import POOLINGS, REDUCTIONS, Windowed, pooled, reduced
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

_LEAST = 1e-6  # added to 1 - p, which is 0 where one entry has all attention


@selector("caote", source="CAOTE, arXiv:2504.14051; summed over queries as DropKV, kvpress #284")
@dataclass(frozen=True, kw_only=True)
class OutputChange(Windowed):
    """The squared change of the attention output when the entry alone goes, summed over the last queries.

    Without entry j the softmax renormalises, and query i's output moves by p_ij / (1 - p_ij) (o_i - v_j), exactly.
    CAOTE scores the norm of that for one query. DropKV (openreview MqfNzH3TVH) sums its square over a window of
    queries, averages it over a group and pools it, the window's own columns included, which is what is done here. A
    model's attention sinks (gpt-oss) take their part of p. `kernel=1` does not pool.

    Attributes:
        window: queries of the observation window.
        kernel: width of the pooling, odd.
        pooling: average (zero padding counted), max or none; after the query heads of a group are joined.
        group: how the query heads of a kv head are joined: mean, max or sum.
    """

    pooling: str = "average"
    group: str = "mean"

    def validate(self) -> None:
        """As the window demands, known poolings and reductions."""
        super().validate()
        if self.pooling not in POOLINGS:
            raise UsageError(f"{self.name}: pooling={self.pooling} is unknown; it is one of {', '.join(POOLINGS)}")
        if self.group not in REDUCTIONS:
            raise UsageError(f"{self.name}: group={self.group} is unknown; it is one of {', '.join(REDUCTIONS)}")

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens); 0 inside the window."""
        window = trace.observed(self.window)
        rows = []
        for layer in range(len(trace.layers)):
            weights = trace.attention(layer, window)  # (kv_heads, group, window, n)
            of_heads = at_least_float32(trace.attended(layer)[1]).to(weights.dtype)[:, None]
            values = trace.by_entry(of_heads)  # (kv_heads, 1 | group, n, d)
            outputs = weights @ values
            factor = (weights / (1 - weights + _LEAST)).square()
            # |v - o|^2 = |v|^2 - 2 v.o + |o|^2, so that no (window, n, d) tensor is made
            apart = factor.sum(2) * values.square().sum(-1)
            apart = apart - 2 * (values * (factor.transpose(2, 3) @ outputs)).sum(-1)
            apart = apart + (factor.transpose(2, 3) @ outputs.square().sum(-1, keepdim=True))[..., 0]
            joined = reduced(apart.clamp_min(0), self.group)[:, None]
            rows.append(pooled(joined, self.kernel, self.pooling)[:, 0])
        scores = torch.stack(rows)
        scores[..., trace.n - window :] = 0
        return scores

"""LagKV (arXiv:2504.04704): keys and values set against those of the partition after their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("lagkv", source="LagKV, arXiv:2504.04704")
@dataclass(frozen=True, kw_only=True)
class LagRelative(Selector):
    """Spread over channels of keys and values, scaled by the range that the next partition has in each channel.

    After the sinks, tokens fall into partitions. In each, keys (and values alike) become (x - min) / (max - min) with
    the next partition's minimum and maximum of each channel. Of that: the standard deviation over channels, softmax
    within the partition, mean of keys and values, and the rank within the partition over its size. Sinks, the last
    whole partition and what follows it score 1. Of a sequence shorter than the sinks and two partitions the latest
    tokens score highest, as in kvpress. A channel without any range in the next partition counts as 0 where kvpress
    divides by 0.

    Attributes:
        sinks: first tokens, which score 1.
        lag: tokens of a partition.
    """

    sinks: int = 4
    lag: int = 128

    def validate(self) -> None:
        """Partitions of at least two tokens, no negative number of sinks."""
        if self.lag < 2 or self.sinks < 0:
            raise UsageError(f"{self.name}: lag is a number of tokens from 2, sinks one from 0")

    def remarks(self, number: int, candidates: Candidates) -> tuple[str, ...]:
        """That a context is too short for partitions."""
        if candidates.n >= self.sinks + 2 * self.lag:
            return ()
        return (
            f"{self.spec}: {candidates.n} tokens are fewer than {self.sinks} + 2 x {self.lag}, so that it ranks by "
            "position alone, the latest first",
        )

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens) in 0 to 1, or (tokens,) where there are too few."""
        after = trace.n - self.sinks
        if after < 2 * self.lag:
            late = torch.arange(max(0, after), dtype=torch.float32, device=trace.tokens.device) / max(1, after)
            return torch.cat([late.new_ones(trace.n - len(late)), late])
        return torch.stack([self._layer(trace, layer) for layer in range(len(trace.layers))])

    def _layer(self, trace: Trace, layer: int) -> Tensor:
        keys, values = trace.keys(layer), trace.values(layer)
        spread = (self._spread(keys) + self._spread(values)) / 2
        ranks = spread.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
        inside = (ranks.to(spread.dtype) / self.lag).flatten(1)
        scores = inside.new_ones(keys.shape[:2])
        scores[:, self.sinks : self.sinks + inside.shape[1]] = inside
        return scores

    def _spread(self, states: Tensor) -> Tensor:
        """(kv_heads, partitions but the last, lag)."""
        parts = (states.shape[1] - self.sinks) // self.lag
        inside = at_least_float32(states)[:, self.sinks : self.sinks + parts * self.lag]
        inside = inside.unflatten(1, (parts, self.lag))
        this, following = inside[:, :-1], inside[:, 1:]
        low, high = following.amin(2, keepdim=True), following.amax(2, keepdim=True)
        scaled = torch.where(high > low, (this - low) / (high - low).masked_fill(high <= low, 1), 0)
        return scaled.std(-1).softmax(-1)

"""TriAttention (arXiv:2604.04921): how keys lie to the mean query at distances to come, and how much queries vary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.selectors.window import REDUCTIONS, reduced
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("triattention", source="TriAttention, arXiv:2604.04921")
@dataclass(frozen=True, kw_only=True)
class TriAttention(Selector):
    """Logits of the mean query at several distances to come, plus what queries' lengths exceed their mean by.

    Over the rotated pairs of channels f, sum of |E q_f| |k_f| cos(w_f D + phi_f), which is the logit of the mean query
    placed D tokens further, averaged over D = 1, 2, 4, ... from the next token on; plus (E|q_f| - |E q_f|) |k_f|. As in
    the authors' code, each query head's scores are standardised over the candidates, then the largest of a group
    counts. They calibrate query statistics on other texts; here those are the context's own, from the 5th token on.

    Attributes:
        furthest: distances are the powers of two up to this.
        standardised: whether each query head's scores get mean 0 and deviation 1 before heads are joined.
        group: how the query heads of a kv head are joined: mean, max or sum.
    """

    furthest: int = 65536
    standardised: bool = True
    group: str = "max"

    def validate(self) -> None:
        """A distance at least, a known reduction."""
        if not 1 <= self.furthest <= 1 << 20:
            raise UsageError(f"{self.name}: furthest={self.furthest} is a number of tokens from 1 to {1 << 20}")
        if self.group not in REDUCTIONS:
            raise UsageError(f"{self.name}: group={self.group} is unknown; it is one of {', '.join(REDUCTIONS)}")

    @property
    def needs(self) -> frozenset[str]:
        """Mean queries before the rotary embedding, and mean lengths of their pairs of channels."""
        return frozenset({"query_moments", "query_lengths"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        return torch.stack([self._layer(trace, layer) for layer in range(len(trace.layers))])

    def _layer(self, trace: Trace, layer: int) -> Tensor:
        rotation, index = trace.rotation, trace.layers[layer]
        assert rotation is not None  # recorded with the moments
        keys = at_least_float32(trace.keys(layer))
        mean = trace.query_moments[layer].mean.to(keys)[:, None]
        powers = torch.tensor([1 << i for i in range(self.furthest.bit_length())], device=keys.device)
        turn = rotation.at(index, trace.seen + powers, keys)
        ahead = turn.mean().apply(mean).unflatten(0, (keys.shape[0], -1))  # (kv_heads, group, 1, d)
        scores = (ahead @ keys[:, None].mT)[..., 0, :]
        excess = trace.signal("query_lengths")[layer].to(keys) - rotation.lengths(index, mean)[:, 0]
        scale = torch.hypot(turn.cos[:1], turn.sin[:1])  # 1 but for YaRN, by which keys are scaled already
        of_pairs = (excess * scale.to(keys)).unflatten(0, (keys.shape[0], -1))  # (kv_heads, group, pairs)
        scores = scores + of_pairs @ rotation.lengths(index, keys).mT
        if self.standardised:
            inside = scores[..., trace.first : trace.last]
            spread = inside.std(-1, correction=0, keepdim=True).clamp_min(1e-6)
            scores = (scores - inside.mean(-1, keepdim=True)) / spread
        return reduced(scores, self.group)

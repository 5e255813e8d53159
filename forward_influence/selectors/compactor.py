"""Compactor (arXiv:2507.08143): keys that stand apart, and attention within chunks that looks both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.signals.chunk_attention import DEFAULT_CHUNK, OUTSIDE_FIRST, OUTSIDE_LAST
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

_RIDGE = 1e-2  # on the diagonal of K^T K, as in kvpress


@selector("compactor", source="Compactor, arXiv:2507.08143")
@dataclass(frozen=True, kw_only=True)
class Compactor(Selector):
    """Leverage of keys before the rotary embedding, times `blend`, plus attention of chunks; both standardised.

    Leverage: k^T (K^T K + 0.01)^-1 k of keys less their mean. Attention: softmax within chunks in which every token
    sees all others, summed over queries, mean over a group, times ||v||, averaged over three neighbours. Both get mean
    0 and deviation 1 within a layer. The first 8 and the last 4 tokens are left out and rank first.

    Three things differ from kvpress' CompactorPress. Logits are scaled as the model scales them; the press leaves
    1/sqrt(d) out. The last chunk is as long as it is; the press fills it up with keys of logit 0, for it masks with
    -1e-9. Leverage is exact; the press estimates it from a random projection to 48 channels. Its `blending` is by
    default the compression ratio, here it is fixed.

    Attributes:
        chunk: tokens of a chunk.
        blend: weight of the leverage.
    """

    chunk: int = DEFAULT_CHUNK
    blend: float = 0.35

    def validate(self) -> None:
        """Chunks of two tokens at least, no negative weight."""
        if self.chunk < 2 or self.blend < 0:
            raise UsageError(f"{self.name}: chunk is a number of tokens from 2, blend is 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """Attention within chunks, and how to undo the rotary embedding, which comes with the query moments."""
        return frozenset({f"chunk_attention:{self.chunk}", "query_moments"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        positions = trace.positions.expand(trace.shape)
        scored = (positions >= OUTSIDE_FIRST) & (positions < trace.seen - OUTSIDE_LAST)
        if not bool(scored.any()):
            return torch.zeros(trace.shape, device=trace.tokens.device)
        rows = []
        for layer in range(len(trace.layers)):
            inside = scored[layer]
            leverage = _standardised(self._leverage(trace, layer, positions[layer], inside), inside)
            received = trace.signal(f"chunk_attention:{self.chunk}")[layer]
            weighed = received * at_least_float32(trace.values(layer)).norm(dim=-1)
            attention = _standardised(F.avg_pool1d(weighed * inside, 3, stride=1, padding=1), inside)
            scores = self.blend * leverage + attention
            rows.append(torch.where(inside, scores, scores[inside].max()))
        return torch.stack(rows)

    def _leverage(self, trace: Trace, layer: int, positions: Tensor, inside: Tensor) -> Tensor:
        """(kv_heads, tokens); of what is not `inside` it means nothing."""
        assert trace.rotation is not None
        keys = at_least_float32(trace.keys(layer))
        index = trace.layers[layer]
        plain = torch.stack(
            [
                trace.rotation.at(index, where, keys).undo(of_head[None])[0]
                for where, of_head in zip(positions.clamp_min(0), keys, strict=True)
            ]
        )
        weights = inside[..., None].to(keys)
        mean = (plain * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        centred = (plain - mean) * weights
        squares = centred.mT @ centred
        ridge = _RIDGE * torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
        return (centred.mT * torch.linalg.solve(squares + ridge, centred.mT)).sum(1).clamp_min(0)


def _standardised(scores: Tensor, inside: Tensor) -> Tensor:
    """Scores (kv_heads, tokens) of a layer with mean 0 and deviation 1 over those `inside`."""
    among = scores[inside]
    deviation = among.std() if among.numel() > 1 else among.new_zeros(())
    return (scores - among.mean()) / deviation.clamp_min(1e-6)

"""Expected Attention: what queries to come would attend to, were they drawn like those of the context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.instrument.turns import Turn
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

MOST_FUTURE = 1_000_000  # a rotation each


@selector("expected-attention", source="Expected Attention, arXiv:2510.00636")
@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Selector):
    """Mean attention of Gaussian queries at the next positions, times the norm of the value.

    z_j = k_j.(R mu) s + k_j^T (R Sigma R^T) k_j s^2 / 2; softmax over j >= sinks, mean over a group, times ||v_j||.
    mu, Sigma: moments of the queries before the rotary embedding from the 5th token on; R: mean rotation over the next
    `future` positions; s: the layer's scaling, 1/sqrt(d). Attention sinks and soft-capping of a model are left out.

    Attributes:
        future: how many positions after the context.
        sinks: first tokens that are left out of the softmax and rank first.
        epsilon: added before the value norm.
        covariance: whether to use Sigma.
        values: whether to multiply by ||v_j||.
    """

    future: int = 512
    sinks: int = 4
    epsilon: float = 0.0
    covariance: bool = True
    values: bool = True

    def validate(self) -> None:
        """Some future, nothing negative."""
        if not 1 <= self.future <= MOST_FUTURE or self.sinks < 0 or self.epsilon < 0:
            raise UsageError(f"{self.name}: future is 1 to {MOST_FUTURE}, sinks and epsilon are 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """Moments of the queries before the rotary embedding."""
        return frozenset({"query_moments"})

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        rows = [self._layer(trace, layer) for layer in range(len(trace.layers))]
        return torch.stack(rows)

    def _layer(self, trace: Trace, layer: int) -> Tensor:
        keys = at_least_float32(trace.keys(layer))[:, self.sinks :]
        mean, covariance = self._rotated(trace, layer, keys)
        scaling, group = trace.geometry[layer].scaling, mean.shape[0] // keys.shape[0]
        grouped = keys[:, None]  # (kv_heads, 1, tokens, d) against (kv_heads, group, ...)
        logits = (grouped @ mean.reshape(keys.shape[0], group, -1, 1))[..., 0] * scaling
        if covariance is not None:
            spread = covariance.reshape(keys.shape[0], group, *covariance.shape[1:])
            logits = logits + ((grouped @ spread) * grouped).sum(-1) * (scaling**2 / 2)
        attention = logits.softmax(-1).mean(1)
        if self.values:
            attention = (attention + self.epsilon) * at_least_float32(trace.values(layer))[:, self.sinks :].norm(dim=-1)
        first = attention.max() + 1
        return torch.cat([first.expand(keys.shape[0], min(self.sinks, trace.n)), attention], dim=-1)

    def _rotated(self, trace: Trace, layer: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """R mu (query_heads, d) and R Sigma R^T (query_heads, d, d)."""
        turn = future_turn(trace, layer, self.future, like)
        moments = trace.query_moments[layer]
        mean = turn.apply(moments.mean.to(like.dtype)[:, None])[:, 0]
        if not self.covariance:
            return mean, None
        once = turn.apply(moments.covariance.to(like.dtype))
        return mean, turn.apply(once.transpose(1, 2))


def future_turn(trace: Trace, layer: int, future: int, like: Tensor) -> Turn:
    """R: the mean rotation of the index-th layer over the next `future` positions, in `like`'s dtype and device."""
    assert trace.rotation is not None  # recorded with the moments
    positions = torch.arange(trace.seen, trace.seen + future, device=like.device)
    return trace.rotation.at(trace.layers[layer], positions, like).mean()


def future_query(trace: Trace, layer: int, future: int, like: Tensor) -> Tensor:
    """R mu: the mean query, turned by the mean rotation over the next `future` positions, (query_heads, d)."""
    mean = trace.query_moments[layer].mean.to(like.dtype)
    return future_turn(trace, layer, future, like).apply(mean[:, None])[:, 0]

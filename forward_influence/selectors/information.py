"""What rules that rank by information share: entropy's parameters, E = (D + tau) * H, its mixture with attention."""

from __future__ import annotations

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector, at_grain
from forward_influence.selectors.budgets import apportion
from forward_influence.tracing.signals.entropy import ALIGNMENTS, entropy_need
from forward_influence.tracing.trace import Trace


def check_entropy(rule: Selector, top_k: int, alignment: str) -> None:
    """Refuse parameters of an entropy that make no sense."""
    if top_k < 0:
        raise UsageError(f"{rule.name}: top_k={top_k} is negative; give 0 (the whole vocabulary) or more")
    if alignment not in ALIGNMENTS:
        raise UsageError(f"{rule.name}: alignment={alignment} is unknown; it is {' or '.join(ALIGNMENTS)}")


def infokv(attention: Tensor, found: Tensor, candidates: Tensor, alpha: float, per: str = "entry") -> Tensor:
    """S = alpha * A + (1 - alpha) * softmax(E), both terms summing to 1 over the candidates: the rule and the press.

    Args:
        attention: (..., kv_heads, tokens), not negative.
        found: information E, broadcastable to that.
        candidates: (tokens,) bool.
        per: the grain that both terms are averaged to, attention before it is normalised.
    """
    share = found.masked_fill(~candidates, float("-inf")).softmax(-1)
    return alpha * normalised(at_grain(attention, per), candidates) + (1 - alpha) * at_grain(share, per)


def normalised(scores: Tensor, candidates: Tensor) -> Tensor:
    """Scores that are not negative, divided so that they sum to 1 over the candidates; 0 elsewhere.

    In float64, where scores that differ in float32 still differ after the division.
    """
    inside = scores.double() * candidates
    return inside / inside.sum(-1, keepdim=True).clamp_min(torch.finfo(inside.dtype).tiny)


def information_needs(top_k: int, alignment: str) -> frozenset[str]:
    """What `information` reads."""
    return frozenset({entropy_need(top_k, alignment), "representation_change"})


def information(trace: Trace, tau: float, top_k: int, alignment: str = "own") -> Tensor:
    """E = (D + tau) * H, (layers, 1, tokens), or (layers, kv_heads, tokens) where heads hold different tokens."""
    change = trace.representation_change
    return information_of(change if change.dim() == 3 else change[:, None], trace.entropy_of(top_k, alignment), tau)


def information_of(change: Tensor, entropies: Tensor, tau: float) -> Tensor:
    """E = (D + tau) * H of representation changes D and entropies H."""
    return (change + tau) * entropies


def layer_shares(trace: Trace, number: int, tau: float, top_k: int, alignment: str = "own") -> list[int]:
    """`number` candidates per layer on average, divided in proportion to each layer's information; at least 1 each."""
    mass = (information(trace, tau, top_k, alignment) * trace.candidates).sum(-1).mean(-1).tolist()
    return apportion(mass, number * len(mass), 1, trace.last - trace.first)

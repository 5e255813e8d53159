"""Dividing a number of entries between layers or heads: exact totals, bounds, largest remainders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from forward_influence.selectors.selection import Candidates

#: Share of its even budget that a head keeps whatever the others score (Ada-KV, arXiv:2407.11550).
SAFEGUARD = 0.2


def apportion(weights: Sequence[float], total: int, lowest: int, highest: int) -> list[int]:
    """Divide `total` in proportion to `weights`, each share between `lowest` and `highest`; they sum to `total`.

    Shares at a bound give or take the rest in proportion; fractions go by largest remainder, of equals the earlier.

    Raises:
        ValueError: no division has that sum within those bounds, or a weight is negative or not finite.
    """
    size = len(weights)
    if not lowest * size <= total <= highest * size:
        raise ValueError(f"{total} cannot be divided into {size} shares of {lowest} to {highest}")
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise ValueError("weights must be finite and not negative")
    shares = _bounded(list(weights), total, lowest, highest)
    counts = [min(highest, max(lowest, math.floor(share + 1e-9))) for share in shares]
    order = sorted(range(size), key=lambda i: (round(counts[i] - shares[i], 9), i))
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        room = [i for i in order if lowest <= counts[i] + step <= highest]
        for i in room[: abs(missing)]:
            counts[i] += step
    return counts


def _bounded(weights: list[float], total: int, lowest: int, highest: int) -> list[float]:
    """Real shares in proportion to weights, clamped; what clamping frees or takes is divided again among the rest."""
    shares = [0.0] * len(weights)
    free = list(range(len(weights)))
    rest = float(total)
    while free:
        mass = sum(weights[i] for i in free)
        wanted = {i: rest * weights[i] / mass if mass > 0 else rest / len(free) for i in free}
        clamped = {i: min(max(share, lowest), highest) for i, share in wanted.items()}
        excess = sum(clamped.values()) - rest
        # As in CSS's flexible boxes: freeze only those whose clamping goes the way of the total violation.
        frozen = [
            i for i in free if (excess >= 0 and clamped[i] > wanted[i]) or (excess <= 0 and clamped[i] < wanted[i])
        ]
        for i in frozen or free:
            shares[i] = clamped[i]
        rest -= sum(shares[i] for i in frozen)
        free = [i for i in free if i not in frozen] if frozen else []
    return shares


def adaptive_head_counts(
    scores: Tensor, candidates: Candidates, counts: Tensor, safeguard: float = SAFEGUARD
) -> Tensor:
    """Ada-KV's head budgets: a layer's heads compete for its entries, each is sure of a fifth of an even share.

    Args:
        scores: (layers, kv_heads, n), comparable between the heads of a layer.
        counts: (layers, kv_heads) the budgets before heads compete; each layer's sum is kept.
        safeguard: share of its even budget that a head is sure of, one entry at least.

    Returns:
        (layers, kv_heads) int64. Where all heads score alike the budgets stay even.
    """
    inside = scores[..., candidates.first : candidates.last]
    heads = inside.shape[1]
    result = torch.zeros_like(counts)
    for layer, layer_scores in enumerate(inside):
        total = int(counts[layer].sum())
        safe = max(1, int(safeguard * total / heads))
        order = layer_scores.sort(dim=-1, descending=True, stable=True).indices
        ranks = torch.empty_like(order)
        ranks.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
        # Token by token, heads side by side: of equal scores the earlier token's heads all come first.
        flat, secure = layer_scores.T.flatten(), (ranks < safe).T.flatten()
        by_score = flat.sort(descending=True, stable=True).indices
        chosen = by_score[secure[by_score].sort(descending=True, stable=True).indices[:total]]
        result[layer] = torch.bincount(chosen % heads, minlength=heads)
    return result

"""Choosing in two stages: part of a budget by one score, the rest by another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forward_influence.tracing.trace import Trace


def in_two_stages(first: Tensor, second: Tensor, share: float, trace: Trace) -> Tensor:
    """Scores whose K best candidates are, for every K, those of a choice in two stages.

    The floor(share K) best by `first` are taken, then of the others the K - floor(share K) best by `second`; of equals
    the earlier token. What is chosen for K is chosen for K + 1 too, one entry joins, so that one order serves every
    budget: an entry's score is minus the budget at which it joins.

    Args:
        first, second: (layers, kv_heads, tokens).
        share: of the budget that goes by `first`, 0 to 1.

    Returns:
        (layers, kv_heads, tokens) float64; below all candidates elsewhere.
    """
    inside = slice(trace.first, trace.last)
    orders = [
        s[..., inside].sort(dim=-1, descending=True, stable=True).indices.flatten(0, 1).cpu().numpy()
        for s in (first, second)
    ]
    heads, size = orders[0].shape
    joined = np.zeros((heads, size))
    for head in range(heads):
        joined[head] = _joining(orders[0][head].tolist(), orders[1][head].tolist(), share)
    scores = torch.full(trace.shape, float(-size - 1), dtype=torch.float64, device=first.device)
    scores[..., inside] = -torch.from_numpy(joined).reshape(*trace.shape[:2], size).to(first.device)
    return scores


def _joining(first: list[int], second: list[int], share: float) -> list[int]:
    """The budget, from 1, at which each entry joins."""
    at = [0] * len(first)
    taken = next_second = 0
    for budget in range(1, len(first) + 1):
        entry = -1
        if int(share * budget + 1e-9) > taken:
            entry, taken = first[taken], taken + 1
            if at[entry]:  # the second stage had it: its place there goes to the next one
                entry = -1
        if entry < 0:
            while at[second[next_second]]:
                next_second += 1
            entry = second[next_second]
        at[entry] = budget
    return at

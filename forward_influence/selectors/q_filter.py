"""Q-Filters (arXiv:2503.02812): keys along the direction that queries have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@selector("q-filter", needs={"rotated_query_moments"}, source="Q-Filters, arXiv:2503.02812")
@dataclass(frozen=True, kw_only=True)
class QFilter(Selector):
    """k.u, u the first right singular vector of the queries, of the sign that the mean query has along it.

    The authors' make_filters.py stores -u (averaged over a group, as here), and scores -k.(-u). They take queries after
    the rotary embedding, of 20 texts of another corpus; here they are the context's own, from the 5th token on, so that
    nothing has to be downloaded.
    """

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        rows = []
        for layer, moments in enumerate(trace.signal("rotated_query_moments")):
            keys = at_least_float32(trace.keys(layer))
            second = moments.covariance + moments.mean[:, :, None] * moments.mean[:, None, :]
            direction = torch.linalg.eigh(second).eigenvectors[..., -1]  # of the largest eigenvalue
            along = (direction * moments.mean).sum(-1, keepdim=True)
            direction = torch.where(along < 0, -direction, direction)
            if trace.latent:  # every head's keys have a direction of their own, and lie side by side
                rows.append((keys @ direction.flatten().to(keys)) / len(direction))
                continue
            of_group = direction.unflatten(0, (keys.shape[0], -1)).mean(1).to(keys)
            rows.append((keys @ of_group[..., None])[..., 0])
        return torch.stack(rows)

"""At which distances a segment's conditions are measured: everywhere, or at some positions of each bin."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.measurement.request import Request
from forward_influence.measurement.seeds import derived_seed
from forward_influence.utils.distances import zones


def measured_positions(request: Request, m: int, fingerprint: str, segment: int) -> Tensor | None:
    """Distances at which a segment's conditions are measured, the same for all of them; None for all m."""
    if request.layout is not None:
        return torch.cat([torch.arange(start, end) for start, end in request.layout.positions])
    if request.positions_per_bin is None:
        return None
    seed = derived_seed(request.seed, fingerprint, segment, "positions")
    return sampled_positions(m, request.positions_per_bin, request.bin_width, seed)


def sampled_positions(m: int, per_bin: int, width: int, seed: int) -> Tensor:
    """Distances (p,) int64, ascending: `per_bin` drawn without replacement from each bin of `width` positions.

    A bin in which near, middle or far ends is drawn from in two parts, so that each of them has its positions. Parts,
    and a shorter last bin, give as many in proportion to their length, rounded up.

    Raises:
        UsageError: fewer than 1 per bin, or more than a bin holds.
    """
    if not 1 <= per_bin <= width:
        raise UsageError(f"`positions_per_bin` {per_bin} of bins of {width} positions cannot be; give 1 to {width}")
    generator = torch.Generator().manual_seed(seed)
    ends = {end for _, end in zones(m).values()} if m >= 3 else {m}
    edges = sorted({*range(0, m, width), *ends})
    parts = []
    for low, high in pairwise(edges):
        count = -(-per_bin * (high - low) // width)
        parts.append(low + torch.randperm(high - low, generator=generator)[:count].sort().values)
    return torch.cat(parts)

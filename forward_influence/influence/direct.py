"""The direct effect: each continuation token loses its own view of a selection, and nothing else changes.

Position t reads the unablated keys and values of every other continuation token: run in full up to t, drop the
selection, process token t. Queries do not depend on one another then, so that all of them go through in one pass, or
only a sample of them. (Causal mediation, Vig et al. 2020, arXiv:2004.12265, for entries of a KV cache.)
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.replay import Entries, Queries, replay_cache
from forward_influence.utils.distances import zones


def direct_hidden(
    model: PreTrainedModel,
    instrument: Instrument,
    branch: SelectiveCache,
    n: int,
    later: Entries,
    continuation: Tensor,
    distances: Tensor,
    chunk: int,
) -> Tensor:
    """Last hidden states (p, hidden) of the continuation tokens at `distances`, each run by itself.

    Args:
        branch: what is left of the context's cache.
        n: context tokens.
        later: the full run's continuation, from `replay.continuation_entries`.
        continuation: (m,) token ids.
        distances: (p,) ascending, 0 <= distance < m.
        chunk: queries per forward pass.
    """
    parts = []
    for some in distances.split(chunk):
        queries = Queries(n, some)
        instrument.cache = replay_cache(branch, later, queries)
        parts.append(forward_hidden(model, continuation[some], instrument, queries.positions))
        instrument.cache = None
    return torch.cat(parts)


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

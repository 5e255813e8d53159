"""The direct effect: each continuation token loses its own view of a selection, and nothing else changes.

Position t reads the unablated keys and values of every other continuation token: run in full up to t, drop the
selection, process token t. Queries do not depend on one another then, so that all of them go through in one pass, or
only a sample of them. (Causal mediation, Vig et al. 2020, arXiv:2004.12265, for entries of a KV cache.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forward_influence.influence.effects.base import Branch, Effect
from forward_influence.influence.effects.registry import register
from forward_influence.influence.full_run import Continuation
from forward_influence.influence.masked import masked_direct_influence
from forward_influence.instrument.beside import joined_caches
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import continuation_hidden, forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.replay import Queries, replay_cache
from forward_influence.instrument.steps import require_alone
from forward_influence.models.loading import Model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace

#: How many positions `--verify` computes again: each takes a full pass.
_VERIFIED_POSITIONS = 4


class Direct(Effect):
    """Each position runs by itself, over what is left of the context and the full run's continuation."""

    name = "direct"
    replays = True
    each_by_itself = True

    def hidden(self, continuation: Continuation, branch: Branch, length: int, positions: Tensor | None) -> Tensor:
        """The wanted positions alone, a chunk of them per pass; one by one where layers carry states.

        Raises:
            UsageError: a token of this model that comes alone gives something else than among others.
        """
        model, trace, tokens = continuation.model, continuation.trace, continuation.tokens
        held = branch(0)
        distances = (torch.arange(length) if positions is None else positions).to(tokens.device)
        if not model.anatomy.replayable:
            require_alone(model.anatomy.steps)
            return _one_by_one(continuation, held, distances)
        parts = []
        with Instrument(model.model, span=trace.span) as instrument:
            for some in distances.split(continuation.chunk):
                queries = Queries(trace.n, some)
                instrument.cache = replay_cache(held, continuation.entries, queries)
                parts.append(forward_hidden(model.model, tokens[some], instrument, queries.positions))
                instrument.cache = None
        return torch.cat(parts)

    def verified(self, count: int) -> Tensor:
        """A few, evenly spread."""
        return torch.linspace(0, count - 1, min(_VERIFIED_POSITIONS, count)).long()

    def masked_kl(
        self,
        model: Model,
        tokens: Tensor,
        trace: Trace,
        removed: Selection,
        distances: Tensor,
        fills: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """A full pass per distance."""
        return masked_direct_influence(model, tokens, trace, removed, distances, fills)


def _one_by_one(continuation: Continuation, held: SelectiveCache, distances: Tensor) -> Tensor:
    """The full run goes as far as each position; there one token runs over copies of its states."""
    model, trace, tokens = continuation.model, continuation.trace, continuation.tokens
    full, done, parts = trace.cache.branch(None, len(tokens)), 0, []
    with Instrument(model.model, span=trace.span) as instrument:
        for distance in distances.tolist():
            if distance > done:
                instrument.cache = full
                continuation_hidden(model.model, tokens[done:distance], instrument, continuation.chunk)
                done = distance
            instrument.cache = joined_caches(full, held, trace.n)
            parts.append(forward_hidden(model.model, tokens[distance : distance + 1], instrument))
        instrument.cache = None
    return torch.cat(parts)


DIRECT = register(Direct())

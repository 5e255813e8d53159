"""The total effect: the continuation's own entries change too, as they do in generation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from forward_influence.influence.effects.base import Branch, Effect
from forward_influence.influence.effects.registry import register
from forward_influence.influence.full_run import Continuation
from forward_influence.influence.masked import masked_influence
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.models.loading import Model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace


class Total(Effect):
    """The continuation runs over the changed cache, token after token."""

    name = "total"

    def hidden(self, continuation: Continuation, branch: Branch, length: int, positions: Tensor | None) -> Tensor:
        """As far as the last position that is wanted."""
        model, trace = continuation.model, continuation.trace
        length = length if positions is None else int(positions[-1]) + 1
        read = length
        if length == 1 and model.anatomy.steps.joined:  # a token that comes alone may not be what it is among others
            read = min(2, len(continuation.tokens))
        with Instrument(model.model, cache=branch(read), span=trace.span) as instrument:
            hidden = continuation_hidden(model.model, continuation.tokens[:read], instrument, continuation.chunk)
        hidden = hidden[:length]
        return hidden if positions is None else hidden[positions.to(hidden.device)]

    def masked_kl(
        self,
        model: Model,
        tokens: Tensor,
        trace: Trace,
        removed: Selection,
        distances: Tensor,
        fills: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """One unchunked pass over context and continuation."""
        return masked_influence(model, tokens, trace, removed, "drop", fills).kl[distances]


TOTAL = register(Total())

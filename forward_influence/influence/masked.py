"""The same influence by another road, ablation by masking in passes over everything: what `--verify` compares with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forward_influence.influence.comparison import Influence, compare_hidden
from forward_influence.instrument.cache import SelectiveCache, masked
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.replaced import replacing
from forward_influence.models.loading import Model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace


def masked_influence(
    model: Model,
    tokens: Tensor,
    trace: Trace,
    selection: Selection,
    mode: str,
    fills: Sequence[Tensor] | None = None,
) -> Influence:
    """Total effects: one unchunked pass over context and continuation with removal by masking.

    Memory grows with (context + continuation) squared.

    Args:
        fills: values (kv_heads, d_v) per layer that ablated entries get instead; None: they are removed.
    """
    tokens = tokens.to(model.device)
    n, span = trace.n, int(tokens.shape[0])
    hidden: list[Tensor] = []
    with torch.no_grad(), Instrument(model.model, span=trace.span) as instrument:
        for removed in (torch.zeros_like(selection.mask), ~selection.kept(mode)):
            instrument.cache = ablated(model, span, removed, fills, after=n)
            hidden.append(continuation_hidden(model.model, tokens, instrument, span)[n:])
    targets = torch.cat([tokens[n + 1 :], tokens.new_full((1,), -1)])
    return compare_hidden(model.anatomy.head, hidden[0], hidden[1:], targets)[1][0]


def masked_direct_influence(
    model: Model,
    tokens: Tensor,
    trace: Trace,
    removed: Selection,
    distances: Tensor,
    fills: Sequence[Tensor] | None = None,
) -> Tensor:
    """KL (p,) of direct effects by what they mean: a full pass per distance, its last token alone blind.

    Args:
        tokens: (n + m,) context and continuation.
        removed: what the token at each distance does not see.
        distances: (p,).
        fills: as in `masked_influence`.
    """
    tokens = tokens.to(model.device)
    span = int(tokens.shape[0])
    hidden: list[list[Tensor]] = [[], []]
    with torch.no_grad(), Instrument(model.model, span=trace.span) as instrument:
        for position in (trace.n + distances).tolist():
            for found, gone in zip(hidden, (torch.zeros_like(removed.mask), removed.mask), strict=True):
                instrument.cache = ablated(model, span, gone, fills, after=position)
                found.append(continuation_hidden(model.model, tokens[: position + 1], instrument, span)[-1:])
    targets = tokens.new_full((len(distances),), -1)
    full, blind = (torch.cat(parts) for parts in hidden)
    return compare_hidden(model.anatomy.head, full, [blind], targets)[1][0].kl


def ablated(model: Model, span: int, gone: Tensor, fills: Sequence[Tensor] | None, after: int) -> SelectiveCache:
    """An empty cache that hides `gone` (layers, kv_heads, n), or only its values, from tokens at or after `after`."""
    if fills is None:
        return masked(model.model.config, span, list(gone), after)
    return replacing(model.model.config, span, list(gone), fills, after)

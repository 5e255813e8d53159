"""Slices of the model: a selection in some layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forward_influence.errors import UsageError
from forward_influence.measurement.request import Request
from forward_influence.selectors.selection import Selection


def layer_slices(request: Request, full_layers: Sequence[int]) -> list[tuple[int, ...] | None]:
    """The sets of layers that are ablated in turn: one set, or each layer by itself in a sweep."""
    if not request.per_layer:
        return [request.layers]
    return [(layer,) for layer in (full_layers if request.layers is None else request.layers)]


@dataclass(frozen=True)
class Slice:
    """A selection in some layers and heads of the model.

    Attributes:
        selection: what was selected there; nothing elsewhere.
        removed: what leaves the cache: the same in drop mode; in keep mode everything else *there*.
        layers, heads: where.
    """

    selection: Selection
    removed: Selection
    layers: tuple[int, ...]
    heads: tuple[int, ...]


def sliced(selection: Selection, mode: str, layers: Sequence[int] | None, heads: Sequence[int] | None) -> Slice:
    """A selection restricted to model layers and kv heads, None for all.

    Raises:
        UsageError: layers or heads that cannot be ablated.
    """
    where = None if layers is None else set(layers), None if heads is None else set(heads)
    removed = Selection(~selection.kept(mode), selection.layers)
    count = selection.mask.shape[1]
    return Slice(
        selection.restricted(*where),
        removed.restricted(*where),
        tuple(layer for layer in selection.layers if where[0] is None or layer in where[0]),
        tuple(head for head in range(count) if where[1] is None or head in where[1]),
    )


def check_slices(request: Request, full_layers: Sequence[int], kv_heads: int) -> None:
    """Refuse layers and heads that a model does not have, before anything is measured.

    Raises:
        UsageError: with those that there are.
    """
    if not full_layers:
        if request.layers is not None or request.per_layer:
            raise UsageError("the model has no full-attention layer to ablate at this length; use a shorter span")
        return
    nothing = torch.zeros(len(full_layers), kv_heads, 1, dtype=torch.bool)
    sliced(Selection(nothing, tuple(full_layers)), "drop", request.layers, request.heads)

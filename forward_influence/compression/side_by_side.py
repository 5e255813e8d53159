"""Which sequences may share a batch: those that are in it what they are alone."""

from __future__ import annotations

from collections.abc import Sequence

from forward_influence.instrument.batch import can_stack
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.rotary_span import depends_on_length
from forward_influence.models.loading import Model

#: Texts that are generated side by side, where nothing else is said.
BATCH = 8


def alike(model: Model, spans: Sequence[int], most: int) -> list[list[int]]:
    """Indices of sequences in groups of at most `most`, longer ones first.

    How long a sequence gets decides which layers with a window count as full, and in some models how all of it is
    rotated: sequences that differ in that go apart, and all go alone where layers cannot be put side by side.

    Args:
        spans: tokens of each sequence at its end.
    """
    depends = depends_on_length(model.model)
    groups: dict[object, list[list[int]]] = {}
    for i in sorted(range(len(spans)), key=lambda i: (-spans[i], i)):
        key = (model.anatomy.full_layers(spans[i]), spans[i] if depends else None)
        found = groups.setdefault(key, [])
        alone = not can_stack(SelectiveCache(model.model.config, span=spans[i]))
        if not found or len(found[-1]) >= most or alone:
            found.append([])
        found[-1].append(i)
    return [sorted(group) for found in groups.values() for group in found]

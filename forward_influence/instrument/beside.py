"""One token over what is left of a context and all that came after it: where states forbid to replay the tokens.

A state cannot be looked up at a position that is past. So the full run goes as far as a position and stops there, and
the token runs over copies of its states, the entries that are left of the context, and those of the tokens between.
"""

from __future__ import annotations

from typing import Any

from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.layer_kinds import SelectiveIndexedLayer, goes_on
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.states import carries_state, copy_states


def joined_caches(full: SelectiveCache, branch: SelectiveCache, n: int) -> SelectiveCache:
    """A cache with what `branch` holds of the context, and what `full` has of everything else; both stay as they are.

    Args:
        full: has seen the context of n tokens, whole, and as many more as it liked.
        branch: has seen the context alone.
    """
    layers: list[Any] = []
    for whole, part in zip(full.layers, branch.layers, strict=True):
        if not (isinstance(whole, SelectiveLayer) and isinstance(part, SelectiveLayer)):
            layers.append(goes_on(whole))
            continue
        assert whole.keys is not None and whole.values is not None
        later = whole.keys[:, :, n:], whole.values[:, :, n:]
        one = part.branch(None, None, later[0].shape[2] + 1)
        if later[0].shape[2]:
            one.update(*later)
            if isinstance(whole, SelectiveIndexedLayer) and whole.indexer_keys is not None:
                assert isinstance(one, SelectiveIndexedLayer)
                one.update_indexer(whole.indexer_keys[:, n:])
        if carries_state(whole):
            copy_states(whole, one)
        layers.append(one)
    return SelectiveCache.of_layers(layers)

"""A key/value cache that knows what it has seen and what it holds.

A layer reports the number of tokens *seen* as its sequence length, so that an unmodified model gives new tokens the
right positions, and `(held + query_length, seen - held)` as its mask sizes, so that the model's own causal mask fits.
Where layers or heads hold different entries no single mask fits; the layer then brings a mask of its own, which the
instrument's attention function uses instead (see `own_mask`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from forward_influence.errors import UsageError
from forward_influence.instrument.active import active
from forward_influence.instrument.layer_kinds import cache_bytes, goes_on, holds_entries, masking, selective
from forward_influence.instrument.selective_layer import SelectiveLayer, indices

if TYPE_CHECKING:
    from forward_influence.instrument.batch import Padding


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True)


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Per layer of the stock cache: the sliding window or attention chunk, None for full attention.

    0 where a layer holds no entries of single tokens: it carries states, reads another layer's entries, or does not
    attend.
    """
    return [_window(layer) for layer in DynamicCache(config=text_config(config)).layers]


def _window(layer: Any) -> int | None:
    if not holds_entries(layer):
        return 0
    return int(layer.sliding_window) if getattr(layer, "is_sliding", False) else None


class SelectiveCache(Cache):
    """A transformers cache in which every full-attention layer is a `SelectiveLayer`; states are carried as they are.

    Works with an unmodified `model(...)` and `model.generate(...)`; where layers or heads hold different numbers of
    tokens, inside an `Instrument`, which gives each layer a mask of its own. Layers with a sliding window shorter than
    `span` keep transformers' own layer: they hold only their window anyway.

    Args:
        config: the model's configuration.
        span: how long the sequence will get; a window at least as long is no window. None: any window is one.
        room: tokens to make room for at once.

    Attributes:
        padding: what the layers of a cache for several sequences share; None for one sequence.
        updated: the layer that was appended to last; some models tell their attention no other way which it is.
        picking: the layer whose indexer picked last; layers without one take what it picked.
    """

    padding: Padding | None = None
    updated: int | None = None
    picking: int | None = None

    def __init__(self, config: PreTrainedConfig, span: int | None = None, room: int = 0) -> None:
        layers = DynamicCache(config=text_config(config)).layers
        for i, window in enumerate(layer_windows(config)):
            if window is None or (span is not None and window >= span):
                layers[i] = selective(layers[i], room)
        super().__init__(layers=layers)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append to a layer and return what it holds.

        Raises:
            UsageError: layers or heads hold different numbers of tokens and no instrument is on: the model's one mask
                would be wrong for them.
        """
        if active.instrument is None and self._is_ragged():
            raise UsageError(
                "layers or heads of this cache hold different numbers of tokens, which needs masks of their own; "
                "run the model inside `with Instrument(model, cache=cache)`"
            )
        self.updated = layer_idx
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Tensor:
        """Append to a layer's index keys and return all of them."""
        self.picking = layer_idx
        found: Tensor = super().update_indexer(indexer_key_states, layer_idx)
        return found

    def _is_ragged(self) -> bool:
        full = [layer for layer in self.layers if isinstance(layer, SelectiveLayer)]
        return any(layer.holes is not None for layer in full) or len({layer.seen - layer.held for layer in full}) > 1

    @classmethod
    def of_layers(cls, layers: Sequence[Any]) -> SelectiveCache:
        """A cache made of ready layers."""
        cache = cls.__new__(cls)
        Cache.__init__(cache, layers=list(layers))
        return cache

    def full_layers(self) -> tuple[int, ...]:
        """Indices of the layers that can be selected from."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer, SelectiveLayer))

    def branch(self, keep: Tensor | Sequence[Tensor] | None, room: int, order: Tensor | None = None) -> SelectiveCache:
        """A cache that has seen the same and holds only what `keep` marks; this one is left as it is.

        Args:
            keep: (layers, kv_heads, held) bool over `full_layers()`, or a tensor for each; None keeps everything.
            room: tokens that will follow.
            order: (held,) a permutation in which the kept entries are stored; the noise floor uses it, since attention
                does not depend on the order of keys but its rounding does.
        """
        layers = []
        full = iter(range(len(self.full_layers())))
        for layer in self.layers:
            if not isinstance(layer, SelectiveLayer):
                layers.append(goes_on(layer))
            elif order is not None:
                assert layer.keys is not None and keep is None
                layers.append(layer.branch(order.expand(layer.keys.shape[1], -1), None, room))
            elif keep is None:
                layers.append(layer.branch(None, None, room))
            else:
                layers.append(layer.branch(*indices(keep[next(full)]), room))
        return SelectiveCache.of_layers(layers)

    def bytes(self) -> int:
        """Bytes of all that is held: keys, values, states."""
        return sum(cache_bytes(layer) for layer in self.layers)

    def spare_bytes(self) -> int:
        """Bytes of room that no entry fills yet, which `bytes` counts."""
        return sum(layer.spare_bytes() for layer in self.layers if isinstance(layer, SelectiveLayer))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: prompt lookup and assisted decoding take tokens back that selection may have counted."""
        raise UsageError("assisted decoding and prompt lookup are not supported with a selective cache")


def masked(config: PreTrainedConfig, span: int | None, hidden: Iterable[Tensor], after: int) -> SelectiveCache:
    """An empty cache whose full layers hide `hidden` (kv_heads, tokens) each from tokens at or after `after`."""
    cache = SelectiveCache(config, span=span, room=span or 0)
    for i, entries in zip(cache.full_layers(), hidden, strict=True):
        layer = cache.layers[i]
        assert isinstance(layer, SelectiveLayer)
        cache.layers[i] = masking(layer, span or 0, entries, after)
    return cache

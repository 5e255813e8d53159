"""What a model's cache holds of a sequence, in bytes, found by running three tokens through the model.

A cache may hold keys and values, one latent per token in their place, index keys beside them, and states that do not
grow; layers differ in heads and widths, and some hold nothing. Configurations name all of this in as many ways as there
are families, the cache itself in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from forward_influence.instrument.cache import text_config
from forward_influence.instrument.compat import named_cache
from forward_influence.instrument.given import uncompiled

_TOKENS = 3


@dataclass(frozen=True)
class HeldLayer:
    """One layer that holds entries.

    Attributes:
        entry: bytes per token, of all heads.
        window: how many tokens it holds at most; None for all.
        kv_heads, width: heads of its keys, and numbers in one of them.
    """

    entry: int
    window: int | None
    kv_heads: int
    width: int


@dataclass(frozen=True)
class CacheBytes:
    """What a cache holds.

    Attributes:
        layers: those that hold entries.
        states: bytes of what does not grow with the sequence.
    """

    layers: tuple[HeldLayer, ...]
    states: int

    def bytes(self, tokens: int, held: int | None = None) -> int:
        """Of so many tokens; a layer with a window holds no more than that.

        Args:
            held: entries of each head of the other layers; None: all tokens.
        """
        most = tokens if held is None else held
        counts = (most if layer.window is None else min(layer.window, tokens) for layer in self.layers)
        return self.states + sum(layer.entry * count for layer, count in zip(self.layers, counts, strict=True))

    @property
    def full(self) -> tuple[HeldLayer, ...]:
        """The layers without a window."""
        return tuple(layer for layer in self.layers if layer.window is None)


def cache_bytes_of(decoder: nn.Module, config: PreTrainedConfig) -> CacheBytes:
    """Run a few tokens through a decoder, which may be one without memory (on the device "meta").

    Args:
        decoder: called like a transformers model, with tokens and a cache.
        config: of the whole model.
    """
    cache = DynamicCache(config=text_config(config))
    device = next(decoder.parameters()).device
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64, device=device)
    with torch.no_grad(), uncompiled():
        decoder(tokens, use_cache=True, **named_cache(decoder, cache))
    layers = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    return CacheBytes(tuple(map(_held, layers)), sum(_bytes(t) for layer in cache.layers for t in _states(layer)))


def _held(layer: Any) -> HeldLayer:
    parts = (layer.keys, layer.values, getattr(layer, "indexer_keys", None))
    window = int(layer.sliding_window) if getattr(layer, "is_sliding", False) else None
    return HeldLayer(
        entry=sum(_bytes(part) for part in parts if part is not None) // layer.keys.shape[-2],
        window=window,
        kv_heads=layer.keys.shape[1],
        width=layer.keys.shape[-1],
    )


def _states(layer: Any) -> list[Tensor]:
    """A layer's states, of convolutions and of recurrences; several where it carries several."""
    found = [getattr(layer, name, None) for name in ("conv_states", "recurrent_states")]
    return [state for states in found if states for state in states.values() if state is not None]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

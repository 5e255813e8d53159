"""States of layers that carry some: what a linear attention, a state-space model or a convolution remembers of a text.

A state is one tensor for all tokens that went through, so that nothing can be removed from it. Layers write to their
states in place: a cache that goes on from another one needs copies.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from forward_influence.instrument.compat import cache_layer_class

#: What transformers' layers call the states that they carry; each is a mapping from numbers to tensors.
_STATES = ("conv_states", "recurrent_states")
#: And what they note of each by its number.
_NOTES = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")

#: Every layer that carries states is one of these.
StateLayer = cache_layer_class("LinearAttentionCacheLayerMixin")


def carries_state(layer: object) -> bool:
    """Whether a layer of a cache carries states, beside entries or instead of them."""
    return isinstance(layer, StateLayer)


def copy_states(source: Any, target: Any) -> None:
    """Give a layer copies of another's states, and what is noted of them."""
    for name in _STATES:
        setattr(target, name, {k: None if t is None else t.clone() for k, t in getattr(source, name).items()})
    for name in _NOTES:
        setattr(target, name, dict(getattr(source, name)))
    target.number_of_states, target.record_past = source.number_of_states, source.record_past
    target.dtype, target.device = source.dtype, source.device


def states(layer: object) -> dict[str, Tensor]:
    """A layer's states by name and number, "recurrent_states/0"; none where it carries none."""
    return {f"{name}/{k}": t for name in _STATES for k, t in getattr(layer, name, {}).items() if t is not None}


def give_states(layer: Any, named: dict[str, Tensor]) -> None:
    """Give a layer the states that `states` named, as if it had come to them itself."""
    for key, tensor in named.items():
        name, number = key.split("/")
        getattr(layer, name)[int(number)] = tensor.clone()
        layer.device, layer.dtype = tensor.device, tensor.dtype
        layer.has_previous_state[int(number)] = True
        getattr(layer, f"is_{name}_initialized")[int(number)] = True
        if name == "conv_states":
            layer.conv_kernel_size[int(number)] = tensor.shape[-1]


def state_bytes(layer: object) -> int:
    """Bytes of a layer's states."""
    return sum(t.numel() * t.element_size() for t in states(layer).values())

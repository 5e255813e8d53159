"""States rebuilt without what some tokens wrote into them, through the model's own padding mask.

A state is one tensor for all tokens that went through: what a token wrote cannot be taken out of it afterwards. But a
model leaves padding out of its states, and the mask that says what is padding serves any token. So the context runs
once more, and every module that carries states is called twice: as always, so that all later layers get what they got
before; and again on the same input with the removed tokens masked, into states of its own.

What the mask does: a masked token adds nothing to a state. It is not as if it had never been there: the state still
decays at its place where decay does not depend on the input, and a convolution that looks a few tokens back takes a
masked token for zeros, at which neighbours' inputs still count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.compat import named_cache
from forward_influence.instrument.forward import forward_hidden, parts
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.states import carries_state, copy_states

#: What modules with states call their padding mask (tokens that count, (1, q)), and their cache.
_MASKS = ("attention_mask", "conv_mask")
_CACHES = ("cache", "past_key_values", "cache_params")
#: Tokens that show which module writes a layer's states.
_PROBE = 2

_modules: WeakKeyDictionary[PreTrainedModel, dict[int, nn.Module]] = WeakKeyDictionary()


def rebuilt_states(
    model: PreTrainedModel, tokens: Tensor, removed: Tensor, chunk: int, span: int | None = None
) -> DynamicCache:
    """The states after a context (n,) as they are where removed tokens wrote nothing into them.

    With nothing removed they equal those of the same passes bit for bit.

    Args:
        removed: (n,) bool.
        chunk: tokens per pass.
        span: as of `tracing.recorder.record`.

    Returns:
        A cache of transformers' own, in which only states are meant.

    Raises:
        UsageError: the model carries no states, or does not mask them.
    """
    modules = state_modules(model)
    found = DynamicCache(config=text_config(model.config))
    whole = SelectiveCache(model.config, span=span or len(tokens), room=len(tokens))
    with torch.no_grad(), Instrument(model, cache=whole, span=span) as instrument, ExitStack() as stack:
        for module in modules.values():
            stack.enter_context(_twice(module, found, removed.to(tokens.device)))
        for part in parts(model, tokens, whole, chunk):
            forward_hidden(model, part, instrument)
    return found


def give_rebuilt(cache: SelectiveCache, found: DynamicCache) -> SelectiveCache:
    """Put rebuilt states into a cache that goes on from the same context; returns it."""
    for source, target in zip(found.layers, cache.layers, strict=True):
        if carries_state(target):
            copy_states(source, target)
    return cache


def state_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Layer -> the module that writes its states, found by watching who does; once per model.

    Raises:
        UsageError: there is none, or one that takes no padding mask.
    """
    if model not in _modules:
        _modules[model] = _find(model)
    return _modules[model]


def _find(model: PreTrainedModel) -> dict[int, nn.Module]:
    running: list[nn.Module] = []
    cache = _Watched(config=text_config(model.config))
    cache.running, cache.writers = running, {}
    device = next(model.parameters()).device
    inner = backbone(model)
    with ExitStack() as stack:
        for module in model.modules():
            if _mask_name(type(module).forward) and _cache_name(type(module).forward):
                stack.callback(module.register_forward_pre_hook(lambda m, a: running.append(m)).remove)
                stack.callback(module.register_forward_hook(lambda m, a, o: running.pop() and None).remove)
        with torch.no_grad():
            tokens = torch.zeros(1, _PROBE, dtype=torch.int64, device=device)
            inner(tokens, use_cache=True, **named_cache(inner, cache))
    stateful = {i for i, layer in enumerate(cache.layers) if carries_state(layer)}
    if not stateful:
        raise UsageError("this model carries no states beside its entries; leave out `states`")
    if set(cache.writers) != stateful or not all(hasattr(m, "layer_idx") for m in cache.writers.values()):
        raise UsageError(
            f"{type(model).__name__}: the modules that write its states take no padding mask, by which removed tokens "
            "could be kept from them; leave out `states`"
        )
    return cache.writers


class _Watched(DynamicCache):
    """Notes which module runs while a layer's states are written."""

    running: list[nn.Module]
    writers: dict[int, nn.Module]

    def _note(self, layer: int) -> None:
        if self.running:
            self.writers[layer] = self.running[-1]

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self._note(layer_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)


@contextmanager
def _twice(module: nn.Module, found: Cache, removed: Tensor) -> Iterator[None]:
    """Call a module once more after each call, with removed tokens masked and with `found` for its cache."""
    signature = inspect.signature(module.forward)
    mask, cache = _mask_name(type(module).forward), _cache_name(type(module).forward)
    seen, again = 0, False

    def hook(_: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        nonlocal seen, again
        if again:
            return
        call = signature.bind_partial(*inputs, **named)
        count = call.arguments["hidden_states"].shape[1]
        call.arguments[mask] = ~removed[None, seen : seen + count]
        call.arguments[cache] = found
        seen, again = seen + count, True
        try:
            module(*call.args, **call.kwargs)
        finally:
            again = False

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@lru_cache
def _mask_name(forward: Callable[..., Any]) -> str:
    return next((name for name in _MASKS if name in inspect.signature(forward).parameters), "")


@lru_cache
def _cache_name(forward: Callable[..., Any]) -> str:
    return next((name for name in _CACHES if name in inspect.signature(forward).parameters), "")

"""The transformers model in what a user has: compiled, adapted by PEFT, spread by torch, or as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.utils.closeness import close

_PROBE = 12  # tokens


def given_model(model: object) -> PreTrainedModel:
    """The model whose attention and cache can be reached; it shares all weights with what was given.

    `torch.compile` and data parallelism are taken off: what is measured or compressed runs as the model's own code.
    Of a PEFT model the adapted model is taken, with the adapters that are active.

    Raises:
        UsageError: it is no transformers model, or its wrapper does more than the model inside.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if isinstance(inner, nn.Module) and isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif _is_peft(inner):
            inner = _adapted(inner)
        else:
            raise UsageError(
                f"a {type(model).__name__} is no transformers model; give a PreTrainedModel, or one that torch "
                "compiled or PEFT adapted"
            )
    return inner


class _Stance:
    """How many blocks want uncompiled models now, in all threads: the compiler has one stance for all of them."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._set = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._set.enter_context(torch.compiler.set_stance("force_eager"))
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._set.close()


_stance = _Stance()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Models that torch.compile made faster run as they are written inside: what hooks and attention functions see."""
    _stance.enter()
    try:
        yield
    finally:
        _stance.leave()


def adapters_of(model: object) -> tuple[str, ...]:
    """Names of the PEFT adapters that are active in what a user gave; none for other models."""
    inner: Any = getattr(model, "_orig_mod", model)
    if not _is_peft(inner):
        return ()
    active = inner.active_adapter if isinstance(inner.active_adapter, list) else [inner.active_adapter]
    return tuple(active)


def _is_peft(model: object) -> bool:
    peft = sys.modules.get("peft")  # without it no object can be one
    return peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel)


def _adapted(wrapped: Any) -> nn.Module:
    """The model inside a PEFT model, if it is all there is to it.

    Raises:
        UsageError: prompt learning, or adapters whose use the wrapper decides.
    """
    config = wrapped.peft_config[adapters_of(wrapped)[0]]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reason = UsageError(
        f"its PEFT adapter ({kind}) does more than the model inside shows, as learned prompts do, which cannot be "
        "measured; merge it (merge_and_unload) or take it off"
    )
    if getattr(config, "is_prompt_learning", False) or getattr(config, "alora_invocation_tokens", None):
        raise reason
    inner: nn.Module = wrapped.base_model.model
    device = next(inner.parameters()).device
    tokens = torch.arange(3, 3 + _PROBE, device=device)[None]
    training = wrapped.training
    wrapped.eval()
    try:
        with torch.no_grad(), uncompiled():
            outside, inside = (m(input_ids=tokens, use_cache=False).logits for m in (wrapped, inner))
    finally:
        wrapped.train(training)
    if outside.shape != inside.shape or not close(outside, inside, 1e-3):
        raise reason
    return inner

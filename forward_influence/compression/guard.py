"""Looking at a call of `generate` before it runs with a compressed cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from forward_influence.models.generation_settings import settled


@contextmanager
def guarded(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model's `generate` refuses settings that cannot be with a compressed cache, in words.

    torch has hooks for forward passes and none for `generate`, whose settings no forward pass shows; so a function that
    checks them and then calls the model's own stands in its place, and goes with the block.
    """
    own = getattr(model, "generate", None)
    if own is None:  # a model that cannot write can still be read with
        yield
        return
    before = vars(model).get("generate")

    @functools.wraps(own)
    def generate(*args: Any, **named: Any) -> Any:
        return own(*args, **{**named, **settled(model, _by_name(own, args, named))})

    model.generate = generate  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


def _by_name(function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names; those that it cannot take are left to itself to refuse."""
    names = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return {**dict(zip(names, args, strict=False)), **named}

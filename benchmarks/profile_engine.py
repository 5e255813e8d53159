"""Where the engine's time goes: wall time inside its parts, by wrapping them while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import forward_influence.influence.effects.total as total
import forward_influence.influence.measure as influence
import forward_influence.measurement.document as document
from forward_influence.instrument.attention import F as attention_functional
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.selective_layer import SelectiveLayer


def profile(call: Callable[[], Any], model: Any) -> dict[str, float]:
    """Seconds by part: nested parts (head, attention kernel) are inside the others; the rest is the model's body."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                spent[name] += time.perf_counter() - started

        return wrapper

    places = [
        (document, "record", "context pass, signals included"),
        (document, "choose_all", "choosing"),
        (document, "controls_of", "controls: these contain passes of their own"),
        (total, "continuation_hidden", "continuation passes"),
        (influence, "compare_hidden", "head and divergence"),
        (SelectiveCache, "branch", "branching the cache"),
        (SelectiveLayer, "update", "  of the passes: storing keys and values"),
        (type(model.anatomy.head), "__call__", "  of these: head"),
        (attention_functional, "scaled_dot_product_attention", "  of the passes: attention kernel"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, title in places:
            setattr(owner, name, timed(title, getattr(owner, name)))
        started = time.perf_counter()
        call()
        spent["all"] = time.perf_counter() - started
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
    return {name: round(value, 2) for name, value in spent.items()}

"""Effects by name: the modules of this folder, and what else registers itself."""

from __future__ import annotations

import importlib
from functools import cache

from forward_influence.errors import UsageError, alternatives
from forward_influence.influence.effects.base import Effect
from forward_influence.utils.discovery import load_modules

#: What is measured where nothing else is asked for.
DEFAULT = "total"
#: Names that stand for several effects.
TOGETHER = {"both": ("total", "direct")}
_effects: dict[str, Effect] = {}


def register(effect: Effect) -> Effect:
    """Make an effect known by its name; returns it."""
    _effects[effect.name] = effect
    return effect


def names() -> tuple[str, ...]:
    """All effects, the default first."""
    _discover()
    return (DEFAULT, *sorted(_effects.keys() - {DEFAULT}))


def effect_of(name: str) -> Effect:
    """The effect of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        raise UsageError(f"effect {name!r} is unknown; it is {alternatives(names())}")
    return _effects[name]


def effects_of(name: str) -> tuple[Effect, ...]:
    """The effects that a name stands for: of `names`, or of `TOGETHER`.

    Raises:
        UsageError: it stands for none.
    """
    return tuple(effect_of(one) for one in TOGETHER.get(name, (name,)))


@cache
def _discover() -> None:
    load_modules(importlib.import_module("forward_influence.influence.effects"))

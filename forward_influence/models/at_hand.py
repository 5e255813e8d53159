"""Which models are at hand: those with names, and those in the hub's cache."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.models import hub
from forward_influence.models.catalog import catalogue
from forward_influence.models.store import problem


@dataclass(frozen=True)
class AtHand:
    """A model that can be named: `state` is "ready", "not pulled", or what is wrong with it. Sizes in bytes."""

    name: str
    title: str
    source: str
    licence: str
    state: str
    size: int
    download: int = 0
    terms: str = ""
    default: bool = False


def describe_models() -> list[AtHand]:
    """The named models, and the models with safetensors weights in the local hub cache. Nothing is hashed or loaded."""
    named = [
        AtHand(
            name=model.name,
            title=model.title,
            source=model.source,
            licence=model.licence,
            state=problem(model, full=False) or "ready",
            size=model.size,
            download=model.download,
            terms=model.terms,
            default=model.default,
        )
        for model in catalogue().values()
    ]
    return named + [AtHand(name, name, "hub cache", "", "ready", size) for name, size in hub.cached_models()]

"""Surprisal: how unexpected a token was."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace


@selector("surprisal", source="-log p of the token itself")
@dataclass(frozen=True, kw_only=True)
class Surprisal(Selector):
    """How unexpected a token was: -log p given what came before it."""

    @property
    def needs(self) -> frozenset[str]:
        """Surprisal."""
        return frozenset({"surprisal"})

    def scores(self, trace: Trace) -> Tensor:
        """(tokens,)."""
        return trace.surprisal

"""Ablations: one run of a continuation under a changed cache each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.influence.ablation_kinds import REMOVE, AblationKind
from forward_influence.influence.effects.base import Branch, Effect
from forward_influence.influence.effects.total import TOTAL
from forward_influence.influence.full_run import Continuation
from forward_influence.influence.rerotation import close_gaps
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.replaced import replace_values
from forward_influence.selectors.selection import MODES, Selection
from forward_influence.tracing.trace import Trace


@dataclass(frozen=True)
class Ablation(ABC):
    """One run of a continuation under a changed cache.

    Attributes:
        label: how errors name it.
        length: how many continuation tokens it covers; the others are left out.
        empty: whether nothing is removed, so that no change is expected.
        positions: distances (p,), ascending, at which it is measured; None: everywhere.
    """

    label: str
    length: int
    empty: bool = False
    positions: Tensor | None = None

    def distances(self) -> Tensor:
        """(p,) where it is measured."""
        return torch.arange(self.length) if self.positions is None else self.positions

    @property
    def replays(self) -> bool:
        """Whether it reads the keys and values of the continuation's full run."""
        return False

    @property
    def spoils(self) -> bool:
        """Whether a state that is not finite may spoil those before it, so that shorter runs have to look for it."""
        return False

    @property
    @abstractmethod
    def runs(self) -> int:
        """How many tokens go through the model."""

    @abstractmethod
    def hidden(self, continuation: Continuation) -> Tensor:
        """Last hidden states of the continuation at `distances`, (p, hidden)."""


@dataclass(frozen=True, kw_only=True)
class Removal(Ablation):
    """A run over what an ablation leaves of the context's cache.

    Attributes:
        branch: makes that cache, with room for the given number of tokens.
        effect: how the continuation feels it.
    """

    branch: Branch
    effect: Effect = TOTAL

    @property
    def replays(self) -> bool:
        """As its effect does."""
        return self.effect.replays

    @property
    def spoils(self) -> bool:
        """Within a pass, but not between positions that run each by itself."""
        return not self.effect.each_by_itself

    @property
    def runs(self) -> int:
        """As many as its effect needs."""
        return self.effect.runs(self.length, len(self.distances()))

    def hidden(self, continuation: Continuation) -> Tensor:
        """As its effect runs."""
        return self.effect.hidden(continuation, self.branch, self.length, self.positions)


def removal(
    trace: Trace,
    selection: Selection,
    mode: str,
    length: int,
    label: str = "selection",
    positions: Tensor | None = None,
    effect: Effect = TOTAL,
    rerotate: bool = False,
    kind: AblationKind = REMOVE,
) -> Removal:
    """The ablation of a selection (drop) or of everything else (keep) in the context's cache.

    Args:
        positions, effect: see `Removal`.
        rerotate: what is kept moves up to the continuation, gaps closed; the trace needs its rotation.
        kind: what takes the place of ablated entries; by default they leave the cache.

    Raises:
        UsageError: unknown mode, a selection of another shape than the trace, or gaps to close where none are left.
    """
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is unknown; it is drop or keep")
    if tuple(selection.mask.shape) != trace.shape or selection.layers != trace.layers:
        raise UsageError(f"{label}: a selection of shape {tuple(selection.mask.shape)} does not fit {trace.shape}")
    if rerotate and not kind.removes:
        raise UsageError(f"`rerotate` closes the gaps that removal leaves; ablation {kind.name!r} leaves none")
    kept = selection.kept(mode)

    def branch(room: int) -> SelectiveCache:
        if (fills := kind.fills(trace)) is not None:
            return replace_values(trace.cache.branch(None, room), ~kept, fills)
        cache = trace.cache.branch(kept, room)
        return close_gaps(cache, trace) if rerotate else cache

    return Removal(label, length, bool(kept.all()), positions, branch=branch, effect=effect)


def shuffled(
    trace: Trace, length: int, seed: int = 0, effect: Effect = TOTAL, positions: Tensor | None = None
) -> Removal:
    """An empty selection whose entries are stored in another order: exact attention is the same, rounding is not.

    Args:
        positions, effect: see `Removal`.
    """
    order = torch.randperm(trace.n, generator=torch.Generator().manual_seed(seed)).to(trace.tokens.device)

    def branch(room: int) -> SelectiveCache:
        return trace.cache.branch(None, room, order)

    return Removal("noise floor", length, True, positions, branch=branch, effect=effect)

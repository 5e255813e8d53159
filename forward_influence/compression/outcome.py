"""What a compressor held, how much of it was chosen, and at which grain: what a comparison has to say beside results.

*Held* is what is in the cache right after the last compression, per layer and kv head on average: what the budget is
about. Until the next compression every token that comes is added to it, for all compressors alike; the most that was
held at any moment after the prompt is `most`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.compression.stats import Stats
from forward_influence.selectors.selection import Selection


@dataclass(frozen=True)
class Outcome:
    """What a compressor held, in entries per layer and kv head.

    Attributes:
        counts: right after the last compression, (layers, kv_heads) int64; all that was seen where there was none.
        ends: how many of the first and of the last tokens were pinned in it, kept whatever they score; None where
            nothing was removed, so that all of it is.
        most: the most that was held at any moment after the prompt (compressed where the schedule says so), mean over
            layers and heads.
        grain: of what was chosen, as in `Selection.grain`; None where nothing was.
    """

    counts: Tensor
    ends: tuple[int, int] | None
    most: float
    grain: str | None

    @property
    def held(self) -> float:
        """Mean over layers and heads."""
        return float(self.counts.double().mean())

    @property
    def pinned(self) -> float:
        """How many of them stayed whatever they score."""
        return self.held if self.ends is None else float(sum(self.ends))

    @property
    def chosen(self) -> float:
        """How many of them the rule chose, mean over layers and heads."""
        return self.held - self.pinned

    @staticmethod
    def of(keep: Tensor | None, ends: tuple[int, int], shape: tuple[int, int, int], then: int = 0) -> Outcome:
        """Of one compression, of a context that all layers and heads hold whole.

        Args:
            keep: (layers, kv_heads, tokens) bool; None where everything stays.
            ends: pinned tokens, first and last.
            shape: (layers, kv_heads, tokens).
            then: how many tokens are read after that.
        """
        if keep is None:
            counts = torch.full(shape[:2], shape[2], dtype=torch.int64)
            return Outcome(counts, None, float(shape[2] + then), None)
        counts = keep.sum(-1)
        chosen = keep.clone()
        chosen[..., : ends[0]] = False
        chosen[..., shape[2] - ends[1] :] = False
        return Outcome(counts, ends, float(counts.double().mean()) + then, _grain(chosen))

    @staticmethod
    def after(stats: Stats) -> Outcome:
        """Of a cache that was compressed while it grew."""
        events = stats.events
        if not events:
            return Outcome(stats.held, None, float(stats.held.double().mean()), None)
        last = events[-1]
        held = [float(event.held.double().mean()) for event in events]
        # what was held just before each compression but the first, and what is held now
        seen = [*(event.seen for event in events[1:]), stats.seen]
        grown = [count + then - event.seen for count, event, then in zip(held, events, seen, strict=True)]
        first = [float(events[0].seen)] if events[0].seen > stats.prompt else []  # the prompt was left as it is
        ends = last.ends
        grain = None if ends is None else _grain(_chosen(stats.positions, last.seen, ends))
        return Outcome(last.held, ends, max(held + grown + first), grain)


def _chosen(positions: Sequence[Tensor], seen: int, ends: tuple[int, int]) -> Tensor:
    """(layers, kv_heads, seen) bool: of what is held, the tokens before `seen` that are not pinned."""
    mask = torch.zeros(len(positions), positions[0].shape[0], seen, dtype=torch.bool)
    for layer, each in enumerate(positions):
        rows = each.cpu()
        there = (rows >= 0) & (rows < seen)
        place = there.cumsum(-1) - 1
        free = there & (place >= ends[0]) & (place < there.sum(-1, keepdim=True) - ends[1])
        for head in range(len(rows)):
            mask[layer, head, rows[head, free[head]]] = True
    return mask


def _grain(chosen: Tensor) -> str | None:
    return Selection(chosen, ()).grain if bool(chosen.any()) else None

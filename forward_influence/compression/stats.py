"""What a compressed cache holds and what that took."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Event:
    """One compression.

    Attributes:
        seen: tokens that had gone through.
        held: tokens held after it, (layers, kv_heads) int64.
        seconds: scoring and evicting.
        ends: how many of the first and of the last tokens were kept whatever they score; None where none was removed.
    """

    seen: int
    held: Tensor
    seconds: float
    ends: tuple[int, int] | None = None


@dataclass
class Stats:
    """Of one `compress` block, up to date whenever it is read.

    Attributes:
        layers: indices of the layers that are compressed.
        prompt: tokens of the first pass.
        seen: tokens that went through the model.
        held: tokens held per layer and kv head now, (layers, kv_heads) int64.
        positions: which ones, of each layer (kv_heads, n) int64, ascending; -1 pads in front.
        bytes: of the tensors that hold keys and values, spare room included.
        spare_bytes: of these, room that no entry fills yet.
        full_bytes: what they would be with every token held and no spare room.
        events: the compressions so far.
        scoring_seconds: scoring and evicting, head passes apart.
        head_seconds: head passes and entropies, where the rule reads them.
        remarks: what a reader of results must know (a fallback that a rule took, say).
    """

    layers: tuple[int, ...]
    prompt: int = 0
    seen: int = 0
    held: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    positions: tuple[Tensor, ...] = field(default=(), repr=False)
    bytes: int = 0
    spare_bytes: int = 0
    full_bytes: int = 0
    events: tuple[Event, ...] = ()
    scoring_seconds: float = 0.0
    head_seconds: float = 0.0
    remarks: tuple[str, ...] = ()

    @property
    def compressions(self) -> int:
        """How many there were."""
        return len(self.events)

"""When each entry was last attended to, and the longest it ever waited (LazyEviction, arXiv:2506.15969)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.instrument.attention import SCORE_ELEMENTS, probabilities
from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal, entries
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes

#: The unit of the number behind the colon: attended_steps:100 has the threshold 1e-4, the authors' own.
MILLIONTH = 1e-6
DEFAULT_THRESHOLD = 100


@dataclass(frozen=True)
class Steps:
    """When entries were attended to. A step is a query; its number is the position of its token.

    Attributes:
        last: (layers, kv_heads, n) int64, the last step at which a query head of the group gave the entry at least the
            threshold; the token's own where there was none since.
        longest: (layers, kv_heads, n) int64, the longest gap between two such steps, the token's own counted as one; 0
            where there was none after it.
    """

    last: Tensor
    longest: Tensor


class AttendedSteps(Signal):
    """Last step and longest gap of each entry."""

    name = "attended_steps"
    about = "when each entry last had attention above a threshold in millionths, and its longest wait; costs attention \
a second time"
    label = "attended steps"
    default = DEFAULT_THRESHOLD

    def recording(self, number: int, setting: Setting) -> Recording:
        """Two numbers per entry that is held."""
        return _Recording(number * MILLIONTH, setting)

    def packed(self, value: Steps) -> dict[str, Tensor]:
        """Two tensors."""
        return {"last": value.last, "longest": value.longest}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> Steps:
        """Of two tensors."""
        return Steps(tensors["last"], tensors["longest"])

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """Two numbers per entry; meanwhile a block of attention logits, of weights and of steps."""
        block = min(SCORE_ELEMENTS, sizes.query_heads * chunk * context)
        return Cost(kept=entries(sizes, context) * 16, recording=block * (2 * sizes.wide + 16))


class _Recording(Recording):
    def __init__(self, threshold: float, setting: Setting) -> None:
        self._threshold, self._layers, self._device = threshold, setting.layers, setting.device
        self.last: dict[int, Tensor] = {}
        self.longest: dict[int, Tensor] = {}

    def attention(self, attended: Attended) -> None:
        layer, key, length = attended.layer, attended.key, attended.query.shape[1]
        steps = torch.arange(attended.before, attended.before + length, device=key.device)
        own = steps.expand(key.shape[0], -1)
        empty = own[:, :0]
        last = torch.cat([self.last.get(layer, empty), own], dim=1)
        longest = F.pad(self.longest.get(layer, empty), (0, length))
        rows = max(1, SCORE_ELEMENTS // (attended.query.shape[0] * key.shape[1]))
        for part in torch.arange(length, device=key.device).split(rows):
            visible = attended.visible[:, None, part]
            weights = probabilities(attended.query[:, part], key, attended.geometry, visible)
            hit = (weights.amax(1) >= self._threshold) & visible[:, 0]  # (kv_heads, q, k): of any head of the group
            now = steps[part][None, :, None]
            reached = torch.where(hit, now, 0).cummax(1).values
            before = torch.maximum(F.pad(reached, (0, 0, 1, 0))[:, :-1], last[:, None])
            gaps = torch.where(hit, now - before, 0)
            longest = torch.maximum(longest, gaps.amax(1))
            last = torch.maximum(last, reached[:, -1])
        self.last[layer], self.longest[layer] = last, longest

    def evict(self, layer: int, index: Tensor, holes: Tensor | None) -> None:
        for numbers in (self.last, self.longest):
            kept = numbers[layer].gather(1, index)
            numbers[layer] = kept if holes is None else kept.masked_fill(holes, 0)

    def value(self, part: Part) -> Steps | None:
        """Of the last n entries of the group's heads; None of a part that holds none."""
        if not part.group.n:
            return None
        heads = list(part.group.heads)
        rows = [self._layers[row] for row in part.group.rows]
        last, longest = (
            torch.stack([of[i][heads, of[i].shape[1] - part.n :].to(self._device) for i in rows])
            for of in (self.last, self.longest)
        )
        return Steps(last, longest)


register(AttendedSteps())

"""Which layers, heads and tokens of a sequence a trace is about.

Layers and heads of a compressed cache hold different tokens, and different numbers of them. A trace covers layers and
heads that hold equally many; a cache falls into few such groups: one where budgets are uniform, one per layer where
they differ by layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.instrument.attention import Geometry


@dataclass(frozen=True)
class Group:
    """Layers and kv heads that hold equally many tokens.

    Attributes:
        rows: indices among the cache's full layers.
        heads: kv heads.
        n: tokens that each of them holds.
    """

    rows: tuple[int, ...]
    heads: tuple[int, ...]
    n: int


def groups(counts: Tensor) -> list[Group]:
    """The fewest rectangles of layers x heads with one count each, of counts (layers, kv_heads)."""
    heads = tuple(range(counts.shape[1]))
    found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, layer in enumerate(counts.tolist()):
        for n in sorted(set(layer)):
            members = tuple(h for h in heads if layer[h] == n)
            found.setdefault((n, members), []).append(row)
    return [Group(tuple(rows), members, n) for (n, members), rows in found.items()]


@dataclass(frozen=True)
class Part:
    """What a group of layers and heads holds.

    Attributes:
        group: which layers and heads.
        positions: (layers, kv_heads, n) int64, ascending; -1 pads.
        seen: tokens that went through the model.
        evicted: whether any token is held no more, or left out.
        kv_heads: of the model.
        share: query heads per kv head.
        lasting: whether what is read outlives the recording, so that it must not lie in larger buffers.
    """

    group: Group
    positions: Tensor
    seen: int
    evicted: bool
    kv_heads: int
    share: int
    lasting: bool = False

    @classmethod
    def whole(cls, layers: int, kv_heads: int, share: int, n: int, device: torch.device) -> Part:
        """All of a context of n tokens, to be kept."""
        group = Group(tuple(range(layers)), tuple(range(kv_heads)), n)
        positions = torch.arange(n, device=device).expand(layers, kv_heads, n)
        return cls(group, positions, n, False, kv_heads, share, lasting=True)

    @property
    def n(self) -> int:
        """Tokens that each layer and head holds."""
        return int(self.positions.shape[-1])

    @property
    def all_heads(self) -> bool:
        """Whether it is about all heads of its layers."""
        return len(self.group.heads) == self.kv_heads

    @property
    def query_heads(self) -> list[int]:
        """The query heads that read the group's kv heads."""
        return [h * self.share + g for h in self.group.heads for g in range(self.share)]

    def geometry(self, geometry: Geometry) -> Geometry:
        """A layer's geometry for the group's heads."""
        if geometry.sinks is None or self.all_heads:
            return geometry
        return Geometry(geometry.scaling, geometry.softcap, geometry.sinks[self.query_heads])

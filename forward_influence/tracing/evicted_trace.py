"""A compressed cache as a trace, so that every rule scores it unchanged.

Layers and heads hold different tokens, and different numbers of them. A `HeldTrace` covers layers and heads that hold
equally many; what it says about tokens is gathered for each layer and head. A cache falls into few such groups: one
where budgets are uniform, one per layer where they differ by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError
from forward_influence.instrument.attention import Geometry, probabilities
from forward_influence.tracing.live_signals import TokenSignals
from forward_influence.tracing.signals import DEFAULT_WINDOW, entropy_need
from forward_influence.tracing.trace import Moments, Trace, _missing


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


@dataclass
class HeldTrace(Trace):
    """What a group of layers and heads holds. Signals per token are (layers, kv_heads, n) once tokens were evicted.

    Attributes:
        group: which layers and heads.
        held_positions: (layers, kv_heads, n) int64, ascending; -1 pads.
        seen_tokens: tokens that went through the model.
        signals: columns of the tokens.
        evicted: whether any token was.
    """

    group: Group = field(default_factory=lambda: Group((), (), 0))
    held_positions: Tensor = field(default_factory=lambda: torch.empty(0))
    seen_tokens: int = 0
    signals: TokenSignals = field(default_factory=TokenSignals)
    evicted: bool = False

    @property
    def n(self) -> int:
        """Tokens that each layer and head holds."""
        return int(self.held_positions.shape[-1])

    @property
    def seen(self) -> int:
        """Tokens that went through the model."""
        return self.seen_tokens

    @property
    def positions(self) -> Tensor:
        """(layers, kv_heads, n) int64."""
        return self.held_positions

    def keys(self, index: int) -> Tensor:
        """Keys of the index-th layer and the group's heads, (kv_heads, n, d)."""
        keys = self._layer(index).keys
        assert keys is not None
        return self._of_heads(keys[0])

    def values(self, index: int) -> Tensor:
        """Values, (kv_heads, n, d_v)."""
        values = self._layer(index).values
        assert values is not None
        return self._of_heads(values[0])

    def _of_heads(self, stored: Tensor) -> Tensor:
        """The last n entries of the group's heads: what only pads stands in front."""
        if self.group.n < self.n:
            raise ForwardInfluenceError("this trace is for counting; keys and values come from one group at a time")
        mine = stored if len(self.group.heads) == stored.shape[0] else stored[list(self.group.heads)]
        return mine[:, stored.shape[1] - self.n :]

    def attention(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """Attention of the last `window` queries over what is held, (kv_heads, group, window, n).

        Each query sees what stands at or before it, whether or not its own token is still held.
        """
        queries = self.queries(index, window)
        standing = torch.arange(self.seen - queries.shape[1], self.seen, device=queries.device)
        visible = self.held_positions[index][:, None, None, :] <= standing[None, None, :, None]
        return probabilities(queries, self.keys(index), self.geometry[index], visible)

    def _signal(self, name: str, what: str, need: str) -> Tensor:
        column = self.signals.column(name)
        if column is None:
            raise _missing(what, need)
        if not self.evicted:
            return column if column.dim() == 1 else column[list(self.group.rows)]
        return self.memo(
            ("signal", name), lambda: self.signals.at(name, self.held_positions, self.group.rows, self.seen_tokens)
        )

    def entropy_of(self, top_k: int, alignment: str = "own") -> Tensor:
        """Predictive entropy in nats, (n,) or (layers, kv_heads, n); see `Trace.entropy_of`."""
        need = entropy_need(top_k, alignment)
        return self._signal(need, "entropy", need)

    @property
    def surprisal(self) -> Tensor:
        """-log p_{i-1}(x_i) in nats, (n,) or (layers, kv_heads, n)."""
        return self._signal("surprisal", "surprisal", "surprisal")

    @property
    def representation_change(self) -> Tensor:
        """1 - cos(h^l, h^L), (layers, n) or (layers, kv_heads, n)."""
        return self._signal("change", "representation_change", "representation_change")


def geometry_of(geometry: Geometry, heads: Sequence[int], group: int) -> Geometry:
    """A layer's geometry for some of its kv heads, `group` query heads each."""
    if geometry.sinks is None:
        return geometry
    return Geometry(geometry.scaling, geometry.softcap, geometry.sinks[query_heads(heads, group)])


def moments_of(moments: Moments, heads: Sequence[int], group: int) -> Moments:
    """The same of query moments."""
    index = query_heads(heads, group)
    return Moments(moments.mean[index], moments.covariance[index])


def query_heads(heads: Sequence[int], group: int) -> list[int]:
    """The query heads that read these kv heads."""
    return [h * group + g for h in heads for g in range(group)]

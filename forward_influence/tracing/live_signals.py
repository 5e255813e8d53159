"""Signals of tokens while a sequence grows: what is kept is bounded by what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError
from forward_influence.instrument.attention import Geometry, ReceivedAttention
from forward_influence.tracing.trace import Moments
from forward_influence.utils.numerics import at_least_float32


class LastRows:
    """The last rows of a growing (heads, rows, d) tensor: a ring that is moved only when its store is full.

    Args:
        count: how many rows are wanted at most.
    """

    def __init__(self, count: int) -> None:
        self._count, self._end = count, 0
        self._store: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Append (heads, q, d); what is older than the last `count` rows may go."""
        rows = rows[:, -self._count :]
        if self._store is None:
            self._store = rows.new_empty(rows.shape[0], 2 * self._count, rows.shape[2])
        new = rows.shape[1]
        if self._end + new > self._store.shape[1]:
            kept = self.rows(self._count - new).clone()
            self._store[:, : kept.shape[1]] = kept
            self._end = kept.shape[1]
        self._store[:, self._end : self._end + new] = rows
        self._end += new

    def rows(self, count: int) -> Tensor:
        """The last `count` rows, or as many as there are: (heads, rows, d)."""
        assert self._store is not None
        return self._store[:, self._end - min(count, self._end) : self._end]


class TokenSignals:
    """Columns of numbers per token, for the tokens that some layer and head still hold.

    A column has one number per token, (tokens,), or one per layer and token, (layers, tokens).
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[Tensor]] = {}
        self._columns: dict[str, Tensor] = {}
        self._positions: Tensor | None = None  # of the columns' tokens when last pruned; None: all since the first
        self._pruned_at = 0

    def add(self, name: str, values: Tensor) -> None:
        """Append the values of the tokens that came last, (q,) or (layers, q)."""
        self._pending.setdefault(name, []).append(values)

    def column(self, name: str) -> Tensor | None:
        """A whole column in the order of positions, or None where nothing was recorded."""
        if pending := self._pending.pop(name, None):
            before = [self._columns[name]] if name in self._columns else []
            self._columns[name] = torch.cat([*before, *pending], dim=-1)
        return self._columns.get(name)

    def at(self, name: str, positions: Tensor, rows: Sequence[int], seen: int) -> Tensor:
        """Values at positions (layers, kv_heads, n) of a sequence of `seen` tokens; 0 where a position is negative.

        Args:
            rows: which layers of a column that has one row per layer.

        Raises:
            ForwardInfluenceError: a position whose signals are gone.
        """
        column = self.column(name)
        assert column is not None
        index = positions.clamp_min(0)
        if self._positions is not None:
            known = self._known(seen)
            place = torch.searchsorted(known, index.contiguous()).clamp_max(len(known) - 1)
            if bool(((known[place] != index) & (positions >= 0)).any()):
                raise ForwardInfluenceError(f"{name} of tokens that are held no more is asked for, which is forgotten")
            index = place
        if column.dim() == 1:
            values = column[index]
        else:
            values = column[list(rows)].gather(1, index.reshape(len(rows), -1)).reshape(index.shape)
        return values.masked_fill(positions < 0, 0)

    def prune(self, held: Iterable[Tensor], seen: int) -> None:
        """Forget all but the tokens at the positions `held` (negative ones are none) of `seen`.

        Args:
            held: per layer, any shape.
        """
        known = self._known(seen)
        marked = torch.zeros(seen, dtype=torch.bool, device=known.device)
        for positions in held:
            marked[positions[positions >= 0]] = True
        keep = marked[known]
        for name in {*self._columns, *self._pending}:
            column = self.column(name)
            assert column is not None
            self._columns[name] = column[..., keep]
        self._positions, self._pruned_at = known[keep], seen

    def _known(self, seen: int) -> Tensor:
        """(tokens,) int64, ascending: the positions that the columns have values for."""
        device = next(iter(self._columns.values()), torch.empty(0)).device
        later = torch.arange(self._pruned_at, seen, device=device)
        return later if self._positions is None else torch.cat([self._positions, later])


class Received:
    """Attention that each held entry of a layer received from all queries so far, mean over a kv head's query heads.

    Args:
        received: adds up, in memory that all layers share.
    """

    def __init__(self, received: ReceivedAttention) -> None:
        self.total: Tensor | None = None
        self._received = received

    def add(self, query: Tensor, key: Tensor, geometry: Geometry, visible: Tensor) -> None:
        """Add queries (query_heads, q, d) over all that is held, (kv_heads, held, d), their own keys included.

        Args:
            visible: (kv_heads | 1, q, held) bool.
        """
        before = at_least_float32(key.new_empty(0)).new_zeros(key.shape[0], 0) if self.total is None else self.total
        total = F.pad(before, (0, key.shape[1] - before.shape[1]))
        self.total = total + self._received.of(query, key, geometry, visible)

    def evict(self, index: Tensor, holes: Tensor | None) -> None:
        """Keep the entries at `index` (kv_heads, kept); 0 for those that only pad."""
        assert self.total is not None
        kept = self.total.gather(1, index)
        self.total = kept if holes is None else kept.masked_fill(holes, 0)


class QueryMoments:
    """Running mean and covariance of a layer's queries before the rotary embedding, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, plain: Tensor) -> None:
        """Add (query_heads, q, d)."""
        plain = plain.double()
        new = plain.sum(1), plain.transpose(1, 2) @ plain
        self._count += plain.shape[1]
        self._sums = new if self._sums is None else (self._sums[0] + new[0], self._sums[1] + new[1])

    def moments(self) -> Moments:
        """Mean and covariance (divided by the count) so far."""
        assert self._sums is not None
        mean = self._sums[0] / self._count
        return Moments(mean, self._sums[1] / self._count - mean[:, :, None] * mean[:, None, :])

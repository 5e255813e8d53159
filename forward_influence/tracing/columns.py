"""Numbers per token while a sequence grows: what is kept is bounded by what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError


class TokenColumns:
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

"""Signals of one number per token, or one per layer and token."""

from __future__ import annotations

from torch import Tensor

from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Recording, Setting, Signal


class TokenSignal(Signal):
    """A number per token, (n,), or per layer and token, (L, n); its recordings are `TokenRecording`s.

    Once tokens were evicted and heads hold different ones, rules read it as (L, H, n).
    """


class TokenRecording(Recording):
    """Adds a column to those that are pruned together, and gathers it for the tokens that a part holds.

    Args:
        key: the column.
    """

    def __init__(self, key: str, setting: Setting) -> None:
        self._key, self._columns, self._device = key, setting.columns, setting.device

    def add(self, values: Tensor) -> None:
        """Append the values of the next tokens, (q,) or (layers, q)."""
        self._columns.add(self._key, values)

    def value(self, part: Part) -> Tensor | None:
        """(n,) or (layers, n), or (layers, kv_heads, n) once tokens were evicted; None where nothing was recorded."""
        column = self._columns.column(self._key)
        if column is None:
            return None
        if part.evicted:
            column = self._columns.at(self._key, part.positions, part.group.rows, part.seen)
        elif column.dim() > 1 and len(part.group.rows) < len(column):
            column = column[list(part.group.rows)]
        return column.to(self._device)

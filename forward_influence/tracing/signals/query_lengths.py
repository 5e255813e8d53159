"""How long queries are in each pair of channels that the rotary embedding turns (arXiv:2604.04921)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal
from forward_influence.tracing.signals.query_moments import FIRST_TOKEN
from forward_influence.tracing.signals.registry import register
from forward_influence.utils.numerics import at_least_float32

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes


class QueryLengths(Signal):
    """Per full layer (query_heads, pairs), mean lengths of the queries of tokens from the 5th on, before they turn."""

    name = "query_lengths"
    about = "mean length of the queries in each pair of channels that is rotated"
    rotation = True

    def recording(self, number: int, setting: Setting) -> Recording:
        """Running sums in float64."""
        return _Recording(setting)

    def packed(self, value: list[Tensor]) -> dict[str, Tensor]:
        """One tensor a layer."""
        return {str(i): lengths for i, lengths in enumerate(value)}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """In the order of layers."""
        return [tensors[str(i)] for i in range(len(tensors))]

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """A number per pair and query head; meanwhile a chunk's queries turned back, and their lengths."""
        return Cost(
            kept=sizes.layers * sizes.query_heads * sizes.head_size * 4,
            recording=2 * sizes.query_heads * chunk * sizes.head_size * 8,
        )


class _Recording(Recording):
    """What passed stays in the sums, evicted or not."""

    def __init__(self, setting: Setting) -> None:
        assert setting.rotation is not None
        self._layers, self._device, self._rotation = setting.layers, setting.device, setting.rotation
        self._counts = dict.fromkeys(setting.layers, 0)
        self._sums: dict[int, Tensor] = {}

    def attention(self, attended: Attended) -> None:
        layer = attended.layer
        plain = self._rotation.undo(layer, at_least_float32(attended.query))
        plain = plain[:, max(0, FIRST_TOKEN - attended.before) :]
        new = self._rotation.lengths(layer, plain).double().sum(1)
        self._sums[layer] = new + self._sums[layer] if layer in self._sums else new
        self._counts[layer] += plain.shape[1]

    def value(self, part: Part) -> list[Tensor]:
        found = []
        for row in part.group.rows:
            layer = self._layers[row]
            lengths = (self._sums[layer] / max(1, self._counts[layer])).to(self._device)
            found.append(lengths if part.all_heads else lengths[part.query_heads])
        return found


register(QueryLengths())

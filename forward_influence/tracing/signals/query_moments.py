"""Mean and covariance of a layer's queries before the rotary embedding (arXiv:2510.00636)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Attended, Cost, Recording, Setting, Signal
from forward_influence.tracing.signals.registry import register
from forward_influence.utils.numerics import at_least_float32

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes

FIRST_TOKEN = 4  # attention sinks have queries unlike all others (arXiv:2510.00636)


@dataclass(frozen=True)
class Moments:
    """Mean and covariance (divided by the count) of a layer's queries before the rotary embedding.

    Attributes:
        mean: (query_heads, d).
        covariance: (query_heads, d, d).
    """

    mean: Tensor
    covariance: Tensor


class QueryMoments(Signal):
    """Per full layer, moments of the queries of tokens from the 5th on."""

    name = "query_moments"
    about = "mean and covariance of the queries before the rotary embedding"
    rotation = True

    def recording(self, number: int, setting: Setting) -> Recording:
        """Running sums in float64."""
        return _Recording(setting)

    def packed(self, value: list[Moments]) -> dict[str, Tensor]:
        """Two tensors a layer."""
        means = {f"mean/{i}": moments.mean for i, moments in enumerate(value)}
        return means | {f"covariance/{i}": moments.covariance for i, moments in enumerate(value)}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> list[Moments]:
        """In the order of layers."""
        return [Moments(tensors[f"mean/{i}"], tensors[f"covariance/{i}"]) for i in range(len(tensors) // 2)]

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """A covariance of each query head; meanwhile a chunk's queries turned back, and the same in float64."""
        return Cost(
            kept=sizes.attending * sizes.query_heads * sizes.head_size**2 * 8,
            recording=2 * sizes.query_heads * chunk * sizes.head_size * 8,
        )


class MomentsRecording(Recording):
    """What passed stays in the sums, evicted or not."""

    def __init__(self, setting: Setting) -> None:
        self._layers, self._device = setting.layers, setting.device
        self._counts = dict.fromkeys(setting.layers, 0)
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def attention(self, attended: Attended) -> None:
        layer = attended.layer
        queries = self._queries(attended)[:, max(0, FIRST_TOKEN - attended.before) :].double()
        new = queries.sum(1), queries.transpose(1, 2) @ queries
        before = self._sums.get(layer)
        self._sums[layer] = new if before is None else (before[0] + new[0], before[1] + new[1])
        self._counts[layer] += queries.shape[1]

    def _queries(self, attended: Attended) -> Tensor:
        """The queries whose moments are taken, (query_heads, q, d)."""
        return at_least_float32(attended.query)

    def value(self, part: Part) -> list[Moments]:
        found = []
        for row in part.group.rows:
            moments = self._moments(self._layers[row])
            if not part.all_heads:
                moments = Moments(moments.mean[part.query_heads], moments.covariance[part.query_heads])
            found.append(moments)
        return found

    def _moments(self, layer: int) -> Moments:
        total, squares = self._sums[layer]
        count = max(1, self._counts[layer])  # of no query at all, moments are 0
        mean = total / count
        covariance = squares / count - mean[:, :, None] * mean[:, None, :]
        return Moments(mean.to(self._device), covariance.to(self._device))


class _Recording(MomentsRecording):
    """Of queries as they were before the rotary embedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.rotation is not None
        self._rotation = setting.rotation

    def _queries(self, attended: Attended) -> Tensor:
        return self._rotation.undo(attended.layer, super()._queries(attended))


register(QueryMoments())

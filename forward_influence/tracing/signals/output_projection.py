"""The projection through which attention outputs enter the residual stream, for rules that weigh values by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from forward_influence.instrument.output_projection import Projection, output_projections
from forward_influence.tracing.part import Part
from forward_influence.tracing.signals.base import Cost, Signal
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forward_influence.models.sizes import Sizes


@dataclass
class OutputProjections:
    """All layers' projections, looked for when the first is asked for.

    Attributes:
        model: the model.
        query_heads: which query heads' parts are given; None for all.
    """

    model: PreTrainedModel
    query_heads: Sequence[int] | None = None
    _found: dict[int, Projection] = field(default_factory=dict)

    @property
    def found(self) -> dict[int, Projection]:
        """Layer index -> projection."""
        if not self._found:
            self._found.update(output_projections(self.model))
        return self._found

    def matrix(self, layer: int) -> Tensor:
        """(query heads, d_v, hidden) of a layer of the model."""
        matrix = self.found[layer].matrix()
        return matrix if self.query_heads is None else matrix[list(self.query_heads)]


class OutputProjection(Signal):
    """Each layer's output projection W_O, by query head."""

    name = "output_projection"
    about = "the matrices through which attention outputs reach the residual stream; nothing is recorded"
    label = "the output projection"
    kept = False

    def ready(self, model: PreTrainedModel) -> OutputProjections:
        """Found when a rule reads it."""
        return OutputProjections(model)

    def of_part(self, value: OutputProjections, part: Part) -> OutputProjections:
        """Of the query heads that the part is about."""
        return value if part.all_heads else OutputProjections(value.model, part.query_heads, value._found)

    def packed(self, value: Any) -> dict[str, Tensor]:
        """Nothing of it belongs to a trace."""
        return {}

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """While choosing, one head's values in the residual stream."""
        return Cost(choosing=2 * context * sizes.hidden * sizes.wide)


register(OutputProjection())

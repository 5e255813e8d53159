"""The model once more, for rules that let it read the context again after it has read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from forward_influence.tracing.signals.base import Cost, Signal
from forward_influence.tracing.signals.registry import register
from forward_influence.utils.defaults import CHUNK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forward_influence.models.sizes import Sizes

DEFAULT_PIECE = 2048


class SecondReading(Signal):
    """The model, for a pass over the whole context that follows the context itself. The number: tokens read at once."""

    name = "second_reading"
    about = "the model reads the context again, which costs a prefill over twice the context's length"
    label = "a second reading"
    default = DEFAULT_PIECE
    kept = False
    whole = True
    reads_again = True

    def key(self, number: int) -> str:
        """One for all numbers: it is the model."""
        return self.name

    def ready(self, model: PreTrainedModel) -> PreTrainedModel:
        """Nothing is recorded."""
        return model

    def packed(self, value: Any) -> dict[str, Tensor]:
        """Nothing of it belongs to a trace."""
        return {}

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """While choosing, a cache of the context and a piece of it, and a chunk's attention over a piece, twice."""
        piece = min(number, context)
        attention = 3 * sizes.query_heads * min(CHUNK, piece) * 2 * piece * sizes.wide
        return Cost(choosing=sizes.cache_bytes(context + piece) + attention)


register(SecondReading())

"""The model itself, for rules that run a pass of their own over the context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from forward_influence.tracing.signals.base import Signal
from forward_influence.tracing.signals.registry import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelItself(Signal):
    """The model, unmodified; a rule that runs it leaves it as it was."""

    name = "model"
    about = "the model itself, for rules that run a pass of their own over the context"
    label = "the model"
    live = False
    kept = False

    def ready(self, model: PreTrainedModel) -> PreTrainedModel:
        """Nothing is recorded."""
        return model

    def packed(self, value: Any) -> dict[str, Tensor]:
        """Nothing of it belongs to a trace."""
        return {}


register(ModelItself())

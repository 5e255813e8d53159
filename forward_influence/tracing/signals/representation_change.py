"""How far each layer's output is from the last one's (arXiv:2606.26875)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.tracing.signals.base import Cost, Setting
from forward_influence.tracing.signals.registry import register
from forward_influence.tracing.signals.tokens import TokenRecording, TokenSignal
from forward_influence.utils.numerics import at_least_float32

if TYPE_CHECKING:
    from forward_influence.models.sizes import Sizes


class RepresentationChange(TokenSignal):
    """D = 1 - cos(h^l, h^L) of each full layer and token, (L, n); 0 for the model's last layer."""

    name = "representation_change"
    about = "1 - cos between each layer's output and the last one's"
    hidden = True

    def recording(self, number: int, setting: Setting) -> TokenRecording:
        """A pass at a time."""
        return _Recording(self.key(number), setting)

    def cost(self, sizes: Sizes, context: int, chunk: int, number: int) -> Cost:
        """A chunk's outputs of all layers wait for the last one's."""
        return Cost(recording=sizes.layers * chunk * sizes.hidden * sizes.itemsize)


class _Recording(TokenRecording):
    def __init__(self, key: str, setting: Setting) -> None:
        super().__init__(key, setting)
        self._layers, self._last_layer = setting.layers, setting.anatomy.layers - 1

    def hidden(self, outputs: list[Tensor], last: Tensor) -> None:
        self.add(change_of(outputs, last, self._layers, self._last_layer))


def change_of(outputs: list[Tensor], last: Tensor, layers: tuple[int, ...], last_layer: int) -> Tensor:
    """1 - cos between layers' outputs (q, hidden) and the last layer's, (layers, q); 0 for the last layer itself."""
    last = at_least_float32(last)
    outputs = [output.to(last.device) for output in outputs]
    if last.shape[0] == 1:  # decoding: one call for all layers
        change = 1 - F.cosine_similarity(at_least_float32(torch.stack(outputs)), last[None], dim=-1)
    else:
        change = torch.stack([1 - F.cosine_similarity(at_least_float32(o), last, dim=-1) for o in outputs])
    if last_layer in layers:
        change[layers.index(last_layer)] = 0
    return change


register(RepresentationChange())

"""Where attention outputs enter the residual stream: each layer's output projection, found by watching what runs.

No name is looked for. While one token passes, the first module with a matrix that runs after a layer's attention
function is that layer's projection; the module around it is the layer's attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.instrument import beside


@dataclass(frozen=True)
class Projection:
    """One layer's output projection.

    Attributes:
        module: it.
        attention: the module around it, whose input is what attention reads.
        heads: query heads of the layer.
        width: numbers that it takes in, query heads x size of a value.
    """

    module: nn.Module
    attention: nn.Module
    heads: int
    width: int

    def matrix(self) -> Tensor:
        """(heads, d_v, hidden): what each query head's output is multiplied with; a bias is left out."""
        if type(self.module) is nn.Linear:
            matrix = self.module.weight.T
        else:  # quantised, adapted, transposed: what it does to unit vectors
            like = next(self.module.parameters())
            kind = like.dtype if like.is_floating_point() else torch.get_default_dtype()
            units = torch.eye(self.width, dtype=kind, device=like.device)
            matrix = self.module(units) - self.module(torch.zeros_like(units[:1]))
        return matrix.unflatten(0, (self.heads, self.width // self.heads)).detach()


class _Watch:
    """Notes which module with a matrix runs first after each layer's attention."""

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.heads: dict[int, int] = {}
        self.found: dict[int, tuple[str, int]] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        self.waiting = layer if layer not in self.found else None
        self.heads[layer] = query.shape[1]

    def hidden(self, layer: int, states: Tensor) -> None: ...

    def called(self, name: str, inputs: tuple[Any, ...]) -> None:
        if self.waiting is not None and inputs and isinstance(inputs[0], Tensor):
            self.found[self.waiting], self.waiting = (name, inputs[0].shape[-1]), None


def output_projections(model: PreTrainedModel) -> dict[int, Projection]:
    """Layer index -> its output projection; runs one token.

    What a model does between its attention function and the projection (a gate, a norm) is left out.

    Raises:
        UsageError: none was found.
    """
    watch = _Watch()
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for name, module in model.named_modules():
            if name and any(p.dim() > 1 for p in module.parameters()):
                hook = lambda m, inputs, name=name: watch.called(name, inputs)  # noqa: E731
                stack.callback(module.register_forward_pre_hook(hook).remove)
        stack.enter_context(beside(model, watch))
        backbone(model)(token, use_cache=False)
    if not watch.found:
        raise UsageError(f"{type(model).__name__} shows no projection of its attention outputs; use another rule")
    modules = dict(model.named_modules())
    return {
        layer: Projection(modules[name], modules[name.rpartition(".")[0]], watch.heads[layer], width)
        for layer, (name, width) in watch.found.items()
    }


@contextmanager
def watched_inputs(projections: dict[int, Projection], seen: dict[int, Tensor]) -> Iterator[None]:
    """Note what each layer's attention reads in a pass, layer index -> (q, hidden), in `seen`."""
    with ExitStack() as stack:
        for layer, projection in projections.items():

            def note(module: nn.Module, inputs: Any, named: dict[str, Any], layer: int = layer) -> None:
                states = inputs[0] if inputs else named["hidden_states"]
                seen[layer] = states[0].detach()

            stack.callback(projection.attention.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield

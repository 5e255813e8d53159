"""The rotary embedding as the model applied it: undone on queries, applied at other positions.

Each decoder layer is given the (cos, sin) that its attention uses, which hooks note (layers of one model may differ:
Gemma 3 rotates full and sliding layers at different speeds). The rotation itself is the model family's own
`apply_rotary_pos_emb`, found in the module that defines its attention. Undoing is rotating by minus the angle, which
is checked by rotating back.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.attention import Geometry
from forward_influence.backbone import backbone
from forward_influence.divergence import at_least_float32
from forward_influence.errors import UsageError
from forward_influence.instrument import Instrument
from forward_influence.rotary_span import at_span, depends_on_length


@dataclass(frozen=True)
class _Call:
    """One call of a rotary module: what it was given beside hidden states and positions, and what it gave."""

    module: nn.Module
    extra: tuple[Any, ...]
    cos: Tensor
    sin: Tensor


class Rotation:
    """Hooks one model's rotary embedding.

    Args:
        model: the model.
        decoder_layers: layer index -> module that is given `position_embeddings`.
        span: tokens of the sequences, on which the factors of some models depend.

    Raises:
        UsageError: no rotary embedding that could be undone is found.
    """

    def __init__(
        self, model: PreTrainedModel, decoder_layers: Mapping[int, nn.Module], span: int | None = None
    ) -> None:
        self._modules = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1].startswith("rotary_emb")]
        apply = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
        if not self._modules or apply is None:
            raise _absent(type(model).__name__)
        self._name = type(model).__name__
        self.span = span
        self._depends = depends_on_length(model)
        self._apply: Callable[..., tuple[Tensor, Tensor]] = apply
        self._decoder_layers = dict(decoder_layers)
        self._pending: list[_Call] = []
        self._calls: dict[int, _Call] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        """Start noting the (cos, sin) of each forward pass."""
        for module in self._modules:
            self._handles.append(module.register_forward_hook(self._note_call, with_kwargs=True))
        for index, layer in self._decoder_layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._note_layer(index), with_kwargs=True))

    def detach(self) -> None:
        """Stop noting; what each layer was given last is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()

    def _note_call(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:
            extra = (*inputs[2:], *(v for k, v in named.items() if k not in ("x", "position_ids")))
            self._pending = [*self._pending[-7:], _Call(module, extra, *output)]

    def _note_layer(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = named.get("position_embeddings")
            if not isinstance(given, tuple):
                return
            for call in self._pending:
                if given[0] is call.cos:
                    self._calls[index] = call

        return hook

    def _call(self, layer: int) -> _Call:
        if layer not in self._calls:
            raise _absent(self._name)
        return self._calls[layer]

    def undo(self, layer: int, rotated: Tensor) -> Tensor:
        """Queries (heads, q, d) of the running chunk in a model's layer as they were before the rotary embedding.

        Raises:
            UsageError: the layer was given no rotation, or rotating back does not give the same queries.
        """
        call = self._call(layer)
        cos, sin = call.cos.to(rotated.dtype), call.sin.to(rotated.dtype)
        ones = torch.ones_like(rotated)
        scale = self.apply(self.apply(ones, cos, sin), cos, -sin)  # cos^2 + sin^2: not 1 with YaRN, or in bfloat16
        plain = self.apply(rotated, cos, -sin) / scale
        if _differ(self.apply(plain, cos, sin), rotated, 1e-3):
            raise UsageError("this model's rotary embedding cannot be undone, so expected-attention is not available")
        return plain

    def verify(self, model: PreTrainedModel, token: Tensor, layers: tuple[int, ...]) -> None:
        """Check that undoing gives the queries before the rotation, in every layer.

        A token without a context has the same hidden states at any position, so its queries differ by the rotation
        alone: undone, they must agree. A layer that does not rotate (some models mix such layers in) fails here.

        Args:
            token: (1,) any token id.

        Raises:
            UsageError: they do not agree.
        """
        seen: list[dict[int, Tensor]] = []
        for position in (0, 5):
            recorder = _Undone(self)
            with torch.no_grad(), Instrument(model, recorder, span=self.span):
                backbone(model)(token[None], position_ids=token.new_tensor([[position]]), use_cache=False)
            seen.append(recorder.plain)
        narrow = model.dtype in (torch.bfloat16, torch.float16)
        for layer in layers:
            if _differ(seen[0][layer], seen[1][layer], 5e-2 if narrow else 1e-3):
                raise UsageError(
                    f"layer {layer} of {self._name} does not rotate its queries as the others do, so that "
                    "expected-attention is not available for this model"
                )

    def at(self, layer: int, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of a layer at positions (p,), each (1, p, d), in `like`'s dtype and device."""
        call = self._call(layer)
        # Some modules grow with the positions they see; the model's own must not. Its hooks stay behind: they lead to
        # the whole model.
        module = copy.deepcopy(call.module, {id(hooks): OrderedDict() for hooks in _hooks_of(call.module)})
        positions = positions.to(like.device)
        if self._depends and self.span is not None:
            return at_span(module, like, positions, call.extra, self.span)
        cos, sin = module(like, positions[None], *call.extra)
        return cos, sin

    def apply(self, plain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate (heads, q, d)."""
        return self._apply(plain[None], plain[None], cos.to(plain.dtype), sin.to(plain.dtype))[0][0]


def _hooks_of(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name.startswith("_forward_") and isinstance(value, dict)]


class _Undone:
    """Notes every layer's queries, undone."""

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self.plain: dict[int, Tensor] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        self.plain[layer] = self._rotation.undo(layer, at_least_float32(query[0]))

    def hidden(self, layer: int, states: Tensor) -> None: ...


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return not float((one - other).abs().max()) <= tolerance * (1 + float(other.abs().max()))


def _absent(name: str) -> UsageError:
    return UsageError(
        f"{name} shows no rotary embedding; rules that need queries before it (expected-attention) and re-rotation are "
        "not available for it"
    )

"""The rotary embedding as the model applied it: undone on queries, applied at other positions.

Hooks note what the model's rotary modules give; layers of one model may use different ones (Gemma 3 rotates full and
sliding layers at different speeds) or none (SmolLM3 leaves every fourth layer out). Which one a layer uses, and how it
rotates with it, is not read from its code but found by trying: a token without a context has the same hidden states at
any position, so that its queries and keys at two positions differ by the rotation alone. Undone, they must agree.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import Geometry
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import text_config
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary_span import depends_on_length, rotary_modules
from forward_influence.instrument.turns import READINGS, Reading, Turn, fits, no_turn, planes_of
from forward_influence.utils.numerics import at_least_float32

#: Where the token is put: at the start, where most rotations are none, and at two others.
_POSITIONS = (0, 5, 101)

_Key = tuple[int, str]


@dataclass(frozen=True)
class _Call:
    """One call of a rotary module: its arguments, hidden states without their memory, and the two tensors it gave.

    Attributes:
        planes: (sequences, positions, width) each; the first one stands for all but in a batch.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    planes: tuple[Tensor, Tensor]

    @property
    def output(self) -> tuple[Tensor, Tensor]:
        """(positions, width) each, of the first sequence."""
        return self.planes[0][0], self.planes[1][0]

    def of_row(self, row: int, skipped: int) -> tuple[Tensor, Tensor]:
        """The same of a sequence of a batch, without its first tokens, which only pad."""
        place = min(row, len(self.planes[0]) - 1)  # one may serve all
        return self.planes[0][place, skipped:], self.planes[1][place, skipped:]

    def at(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """What the module gives at other positions (p,), in `like`'s dtype."""

        def swapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return like
            return positions.to(like.device).expand(*value.shape[:-1], -1)

        # Some modules grow with the positions they see; the model's own must not. Its hooks stay behind: they lead to
        # the whole model.
        module = copy.deepcopy(self.module, {id(hooks): OrderedDict() for hooks in _hooks_of(self.module)})
        output = module(*map(swapped, self.inputs), **{name: swapped(value) for name, value in self.named.items()})
        found = planes_of(output)
        assert found is not None  # it was when it was noted
        return found[0][0], found[1][0]


class Rotation:
    """Hooks one model's rotary embedding.

    Args:
        model: the model.
        length: tokens of the sequence that it is about, where that is known; the factors of some models depend on it.

    Attributes:
        row, skipped: which sequence of a batch it is about, and how many of its tokens in the running pass only pad.

    Raises:
        UsageError: it has no rotary embedding.
    """

    def __init__(self, model: PreTrainedModel, length: int = 1) -> None:
        self._name, self.length = type(model).__name__, length
        self._depends = depends_on_length(model)
        self._modules = rotary_modules(model)
        if not self._modules:
            raise _absent(self._name)
        self._calls: dict[_Key, _Call] = {}
        self._ways: dict[int, tuple[_Call, _Key, Reading] | None] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.row = self.skipped = 0

    def of_row(self) -> Rotation:
        """The same for one sequence of a batch; the passes that this one notes are its own, too."""
        return copy.copy(self)

    def attach(self) -> None:
        """Start noting the (cos, sin) of each forward pass."""
        for module in self._modules:
            self._handles.append(module.register_forward_hook(self._note_call, with_kwargs=True))

    def detach(self) -> None:
        """Stop noting; which layer uses what is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()

    def _note_call(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        found = planes_of(output)
        if found is None:
            return
        inputs, named = _light(inputs), dict(zip(named, _light(tuple(named.values())), strict=True))
        plain = [value for value in (*inputs, *named.values()) if not isinstance(value, Tensor)]
        self._calls[(id(module), repr(plain))] = _Call(module, inputs, named, found)

    def verify(self, model: PreTrainedModel, token: Tensor, layers: tuple[int, ...]) -> None:
        """Find how each layer rotates queries and keys, with one token at several positions; call it while attached.

        Args:
            token: (1,) any token id.

        Raises:
            UsageError: a layer's queries and keys depend on their position in another way, or it cannot be told apart.
        """
        last = (getattr(text_config(model.config), "max_position_embeddings", None) or _POSITIONS[-1] + 1) - 1
        if self._depends:
            last = self.length - 1
        seen: list[_Seen] = []
        positions = (*_POSITIONS, self.length - 1)  # some models scale queries far out
        for position in sorted({min(position, last) for position in positions}):
            self._calls.clear()
            recorder = _Seen()
            with torch.no_grad(), Instrument(model, recorder, span=self.length if self._depends else None):
                backbone(model)(token[None], position_ids=token.new_tensor([[position]]), use_cache=False)
            recorder.calls = dict(self._calls)
            seen.append(recorder)
        if not all(set(layers) <= set(one.heads) for one in seen):
            raise UsageError(
                f"layers of {self._name} share their attention and cannot be told apart by a token alone, so that "
                "expected-attention and `rerotate` are not available for this model"
            )
        if any(one.biased for one in seen):
            raise UsageError(
                f"{self._name} adds a bias for positions to its attention, which re-rotation and expected-attention do "
                "not know"
            )
        tolerance = 5e-2 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
        for layer in layers:
            difference, way = self._best(layer, seen)
            if not difference <= tolerance:
                raise UsageError(
                    f"layer {layer} of {self._name} does not rotate its queries and keys in a way that can be undone, "
                    "so that expected-attention and `rerotate` are not available for this model"
                )
            self._ways[layer] = way

    def _best(self, layer: int, seen: list[_Seen]) -> tuple[float, tuple[_Call, _Key, Reading] | None]:
        """The way of a layer that leaves the least difference between positions, and that difference."""
        still = [no_turn(one.heads[layer][0]) for one in seen]
        best: tuple[float, tuple[_Call, _Key, Reading] | None] = (_spread(layer, seen, still), None)
        for key, call in seen[0].calls.items():
            if not all(key in one.calls for one in seen):
                continue
            for reading in READINGS:
                turns = [_turn(reading, one.calls[key].output, one.heads[layer][0]) for one in seen]
                if all(fits(turn, one.heads[layer][0].shape[-1]) for turn, one in zip(turns, seen, strict=True)):
                    spread = _spread(layer, seen, turns)
                    best = (spread, (call, key, reading)) if spread < best[0] else best
        return best

    def undo(self, layer: int, rotated: Tensor) -> Tensor:
        """Queries (heads, q, d) of the running chunk in a model's layer as they were before the rotary embedding.

        Raises:
            UsageError: the layer was not looked at (`verify`).
        """
        way = self._way(layer)
        if way is None:
            return rotated
        _, key, reading = way
        return _turn(reading, self._calls[key].of_row(self.row, self.skipped), rotated).undo(rotated)

    def lengths(self, layer: int, heads: Tensor) -> Tensor:
        """Lengths of the pairs of channels that a layer rotates, of (heads, q, d): (heads, q, pairs); none, no pair.

        Raises:
            UsageError: the layer was not looked at (`verify`).
        """
        way = self._way(layer)
        if way is None:
            return heads[..., :0]
        call, _, reading = way
        return _turn(reading, call.output, heads).lengths(heads)

    def at(self, layer: int, positions: Tensor, like: Tensor) -> Turn:
        """How a layer rotates at positions (p,), in `like`'s dtype and device.

        Raises:
            UsageError: the layer was not looked at (`verify`), or the model's table of angles ends before a position.
        """
        way = self._way(layer)
        if way is None:
            return no_turn(like)
        call, _, reading = way
        end = min((table.shape[0] for table in call.module.buffers() if table.dim() == 2), default=None)
        if end is not None and len(positions) and int(positions.max()) >= end:
            raise UsageError(
                f"{self._name} has no angle for position {int(positions.max())}: its rotary embedding ends at {end}; "
                "shorten the context, or give expected-attention a smaller future"
            )
        if self._depends:
            return self._at_length(call, reading, positions, like)
        return _turn(reading, call.at(positions, like), like)

    def _at_length(self, call: _Call, reading: Reading, positions: Tensor, like: Tensor) -> Turn:
        """The same with the factors of a sequence of this length, beyond its end too, where angles are added."""
        last = self.length - 1
        inside = positions.clamp_max(last)
        beyond = positions - inside

        def turned(where: Tensor) -> Turn:
            with_last = torch.cat([where, where.new_tensor([last])])
            return _turn(reading, tuple(part[:-1] for part in call.at(with_last, like)), like)  # type: ignore[arg-type]

        turn = turned(inside)
        while bool((beyond > 0).any()):
            step = beyond.clamp_max(last)
            turn, beyond = turn.plus(turned(step)), beyond - step
        return turn

    def _way(self, layer: int) -> tuple[_Call, _Key, Reading] | None:
        if layer not in self._ways:
            raise UsageError(f"how layer {layer} of {self._name} rotates was not found out")
        return self._ways[layer]


def _hooks_of(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name.startswith("_forward_") and isinstance(value, dict)]


class _Seen:
    """One token's queries and keys in every layer, and what the rotary modules gave."""

    def __init__(self) -> None:
        self.heads: dict[int, tuple[Tensor, Tensor]] = {}
        self.calls: dict[_Key, _Call] = {}
        self.biased = False

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        self.heads[layer] = (at_least_float32(query[0]), at_least_float32(key[0]))
        self.biased |= biased

    def hidden(self, layer: int, states: Tensor) -> None: ...


def _turn(reading: Reading, output: tuple[Tensor, Tensor], like: Tensor) -> Turn:
    """What a module's output means, in `like`'s dtype and on its device."""
    return reading.turn(*(part.to(like) for part in output))


def _spread(layer: int, seen: list[_Seen], turns: list[Turn]) -> float:
    """The largest difference between positions of queries and of keys once undone, relative to their size."""
    spreads = []
    for which in (0, 1):
        undone = torch.stack([turn.undo(one.heads[layer][which]) for one, turn in zip(seen, turns, strict=True)])
        spreads.append((undone - undone[0]).abs().max() / (1 + undone[0].abs().max()))
    return float(torch.stack(spreads).nan_to_num(float("inf")).max())


def _light(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments without the memory of hidden states, which only lend their dtype."""
    return tuple(v.new_empty(0) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values)


def _absent(name: str) -> UsageError:
    return UsageError(
        f"{name} shows no rotary embedding; rules that need queries before it (expected-attention) and re-rotation are "
        "not available for it"
    )

"""Rotary embeddings whose factors depend on how long the sequence is: every pass uses those of the whole span.

LongRoPE (Phi-3 and later) has one set of frequencies up to a length and another beyond it; dynamic NTK stretches them
with every token beyond the positions that a model was made for. transformers takes the length from the largest position
of the running *pass*, so that a text read in chunks is rotated by several sets, and keys that are held no longer fit
the queries that come later. Inside `pinned` every pass is rotated as in one pass over the whole span: the span's last
position is given to the rotary module beside the pass's own, and its row is taken off again. Nothing of the model is
changed, and modules whose factors do not depend on the length are left alone. Which do is found out by trying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.instrument.backbone import backbone

_POSITIONS = "position_ids"


@dataclass(frozen=True)
class _Call:
    """How a rotary module is called: its arguments, and where among them the positions are."""

    module: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]

    def at(self, positions: Tensor) -> list[Tensor]:
        """Its output at positions (p,), as tensors whose axis before the last is the positions'."""
        inputs, named = _replaced(self.inputs, self.named, lambda old: positions.expand(*old.shape[:-1], -1))
        with torch.no_grad():
            return _tensors(self.module.forward(*inputs, **named))


_calls: WeakKeyDictionary[PreTrainedModel, list[_Call]] = WeakKeyDictionary()
_modules: WeakKeyDictionary[PreTrainedModel, list[nn.Module]] = WeakKeyDictionary()


def changes_with_length(model: PreTrainedModel, *lengths: int) -> bool:
    """Whether a model's rotary factors differ between some of these lengths of a sequence."""
    return any(_differ(call, lengths) for call in _calls_of(model))


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether a model's rotary factors depend on the length of a sequence at all, as far as it was made for."""
    return bool(_changing(model))


def _changing(model: PreTrainedModel) -> list[nn.Module]:
    if model not in _modules:
        lengths = telling_lengths(model)
        found = {id(c.module): c.module for c in _calls_of(model) if _differ(c, lengths)}
        _modules[model] = list(found.values())
    return _modules[model]


def telling_lengths(model: PreTrainedModel) -> tuple[int, ...]:
    """Lengths among which factors that depend on length differ: short, and around each border that is configured."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope, *(t for t in rope.values() if isinstance(t, dict))]
    borders = [
        getattr(config, "max_position_embeddings", None),
        getattr(config, "original_max_position_embeddings", None),
    ]
    borders += [table.get("original_max_position_embeddings") for table in tables]
    named = sorted({int(b) for b in borders if isinstance(b, int | float) and b > 0})
    return (2, *(length for border in named for length in (border, border + 1, 2 * border)))


@contextmanager
def pinned(model: PreTrainedModel, span: int) -> Iterator[None]:
    """Inside, every pass is rotated as in one pass over `span` tokens; nothing for models that do not mind.

    Raises:
        ValueError: a pass goes beyond the span, where its own factors would differ.
    """
    modules = _changing(model)
    if not modules:
        yield
        return
    handles = []
    reset(model)
    for module in modules:
        handles.append(module.register_forward_pre_hook(_lengthen(span), with_kwargs=True))
        handles.append(module.register_forward_hook(_shorten, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        reset(model)


def reset(model: PreTrainedModel) -> None:
    """Forget the longest sequence so far, which some rotary modules keep: what comes next starts as in a new model."""
    for call in _calls_of(model):
        call.at(torch.zeros(1, dtype=torch.int64, device=_device(call)))


def _lengthen(span: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        def longer(positions: Tensor) -> Tensor:
            if int(positions.max()) >= span:
                raise ValueError(f"position {int(positions.max())} lies beyond the span of {span} tokens")
            last = positions.new_full((*positions.shape[:-1], 1), span - 1)
            return torch.cat([positions, last], dim=-1)

        return _replaced(inputs, named, longer)

    return hook


def _shorten(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output[..., :-1, :]
    return type(output)(part[..., :-1, :] for part in output)


def _replaced(inputs: tuple[Any, ...], named: dict[str, Any], change: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A rotary module's arguments with other positions: by name, or the first whole numbers among them."""
    if isinstance(named.get(_POSITIONS), Tensor):
        return inputs, {**named, _POSITIONS: change(named[_POSITIONS])}
    changed = list(inputs)
    for i, value in enumerate(changed):
        if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
            changed[i] = change(value)
            break
    return tuple(changed), named


def _has_positions(inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    found: list[Tensor] = []
    _replaced(inputs, named, found.append)
    return bool(found)


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [part for part in output if isinstance(part, Tensor)]


def _differ(call: _Call, lengths: tuple[int, ...]) -> bool:
    """Whether a module gives the first positions other factors in sequences of different lengths."""
    shortest = min(lengths)
    first = torch.arange(min(shortest, 8))
    found = []
    start = torch.zeros(1, dtype=torch.int64, device=_device(call))
    for length in lengths:
        call.at(start)
        positions = torch.cat([first, torch.tensor([length - 1])])
        try:
            found.append([t[..., :-1, :] for t in call.at(positions.to(start.device))])
        except IndexError:  # a table that ends before
            continue
    call.at(start)
    return any(not torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def _device(call: _Call) -> torch.device:
    return next(v.device for v in (*call.inputs, *call.named.values()) if isinstance(v, Tensor))


def _calls_of(model: PreTrainedModel) -> list[_Call]:
    """The distinct calls of a model's rotary modules, noted while it runs one token."""
    if model in _calls:
        return _calls[model]
    noted: dict[tuple[Any, ...], _Call] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        rows = _tensors(output)
        if not rows or not _has_positions(inputs, named) or any(t.dim() < 2 or t.shape[-2] != 1 for t in rows):
            return
        plain = [v for v in (*inputs, *named.values()) if not isinstance(v, Tensor)]
        noted.setdefault((id(module), *map(str, plain)), _Call(module, inputs, named))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in rotary_modules(model)]
    try:
        with torch.no_grad():
            token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
            backbone(model)(token, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    _calls[model] = list(noted.values())
    return _calls[model]


def rotary_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that may give rotary factors: their name, their class or the name of what holds them says so."""
    found = []
    for name, module in model.named_modules():
        parent, own = ["", *name.split(".")][-2:]
        kind = type(module).__name__
        named = "rotary" in own or own.startswith("rope") or parent.startswith("rotary_emb")
        if named or "rotary" in kind.lower() or "RoPE" in kind or "Rope" in kind:
            found.append(module)
    return found

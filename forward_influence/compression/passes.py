"""Watching the forward passes of a model that uses a compressed cache: long prompts in chunks, one pass at a time."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.compat import given_cache
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.steps import steps_of
from forward_influence.utils.defaults import CHUNK

if TYPE_CHECKING:
    from forward_influence.compression.session import Session

#: Outputs that hold something of every token: who asks for them gets a long prompt read at once.
_OF_ALL_TOKENS = ("hidden_states", "router_logits")
_WITH_TOKENS = ("input_ids", "position_ids", "cache_position", "token_type_ids")


class Passes:
    """Hooks on a model and its decoder that tell a session about each pass.

    Args:
        model: the model.
        cache: what every pass must use.
        session: is told of every part of a pass, and of its end.
        span: the longest sequence, where the cache was made for one.
    """

    def __init__(self, model: PreTrainedModel, cache: SelectiveCache, session: Session, span: int | None) -> None:
        self._model, self._cache, self._session, self._span = model, cache, session, span
        self._instrument: Instrument | None = None
        self._inside_model = self._nested = self._adopted = False
        self._tokens: Tensor | None = None
        self._hidden: Tensor | None = None
        self._done: list[Tensor] = []  # hidden states of a prompt's chunks that are through

    def attach(self, instrument: Instrument, stack: ExitStack) -> None:
        """Hook the model; the stack takes the hooks off again."""
        self._instrument = instrument
        inner = backbone(self._model)
        for handle in (
            self._model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
            self._model.register_forward_hook(self._leave_model, with_kwargs=True, always_call=True),
            inner.register_forward_pre_hook(self._enter_backbone, with_kwargs=True),
            inner.register_forward_hook(self._leave_backbone, with_kwargs=True, always_call=True),
        ):
            stack.callback(handle.remove)

    def _enter_model(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        """Before the whole model: its logits will come, so that the pass ends with them."""
        if self._is_beside():
            return None
        self._refuse_attentions(named)
        self._inside_model = True
        self._adopt()
        return _with_cache_in_use(module, inputs, named)

    def _leave_model(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        """After the whole model, or its failure."""
        if self._is_beside():
            return
        self._inside_model = False
        hidden, self._hidden = self._hidden, None
        try:
            if output is not None and hidden is not None:
                logits = output.logits if hasattr(output, "logits") else output[0]
                self._end(hidden, logits[0] if logits.shape[1] == hidden.shape[0] else None)
        finally:
            self._release()

    def _enter_backbone(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        """Before the layers: refuse what cannot be compressed, read all but the last chunk of a long prompt."""
        if self._is_beside():
            return None
        self._refuse_attentions(named)
        self._adopt()
        _, named = _with_cache_in_use(module, inputs, named)
        length = self._check(named)
        self._tokens, self._done = named.get("input_ids"), []
        if self._cache.get_seq_length() == 0:
            self._make_room(length)
        seen, steps = self._cache.get_seq_length(), steps_of(self._model)
        given = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
        if named.get("position_ids") is None:
            named = {**named, **steps.positions(length, seen, given.device)}
        if "logits_to_keep" in named:  # decoders that leave states out for it; signals are of all tokens
            named = {**named, "logits_to_keep": 0}
        lengths = steps.lengths(length, seen, CHUNK)
        if any(self._wants(named, f"output_{what}") for what in _OF_ALL_TOKENS):
            if steps.single and len(lengths) > 1:
                raise UsageError(
                    "this model reads one token at a time once its states hold something, so that no output of several "
                    "tokens can be given; leave out " + " and ".join(f"output_{what}" for what in _OF_ALL_TOKENS)
                )
            return (), named
        start = 0
        for size in lengths[:-1]:
            self._done.append(self._run_nested(module, _part(named, length, start, start + size)))
            start += size
        return (), _part(named, length, start, length) if start else named

    def _leave_backbone(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
        """After the layers, or their failure: put the chunks' hidden states together."""
        if self._is_beside():
            return None
        if output is not None:
            self._hidden = output[0][0]
            if self._done:
                self._hidden = torch.cat([*self._done, self._hidden])
                output = _with_hidden(output, self._hidden)
        if not self._inside_model:
            hidden, self._hidden = self._hidden, None
            try:
                if hidden is not None:
                    self._end(hidden, None)
            finally:
                self._release()
        return output

    def _is_beside(self) -> bool:
        """Whether a pass is not the sequence's own: a chunk of a longer one, or a rule's, which uses another cache."""
        return self._nested or (self._instrument is not None and self._instrument.cache is not self._cache)

    def _wants(self, named: dict[str, Any], what: str) -> bool:
        """Whether a pass is asked for an output, in its call or in the model's configuration."""
        asked = named.get(what)
        return bool(getattr(text_config(self._model.config), what, False) if asked is None else asked)

    def _refuse_attentions(self, named: dict[str, Any]) -> None:
        """Attention weights are not made: each layer and head holds tokens of its own, of which they could not tell.

        Raises:
            UsageError: they are asked for.
        """
        if self._wants(named, "output_attentions"):
            raise UsageError(
                "attention weights are not given inside a `with compress(...)` block, where every layer holds other "
                "tokens; leave out output_attentions=True, also in the model's configuration"
            )

    def _adopt(self) -> None:
        assert self._instrument is not None
        self._adopted = self._instrument.adopt() or self._adopted

    def _release(self) -> None:
        if self._adopted:
            assert self._instrument is not None
            self._instrument.release()
            self._adopted = False

    def _run_nested(self, module: nn.Module, named: dict[str, Any]) -> Tensor:
        self._nested = True
        try:
            hidden: Tensor = module(**named)[0][0]
        finally:
            self._nested = False
        self._tell(named.get("input_ids"), hidden, None)
        return hidden

    def _tell(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None) -> None:
        self._nested = True  # some heads run the model
        try:
            with torch.no_grad():
                self._session.part(None if tokens is None else tokens[0], hidden, logits)
        finally:
            self._nested = False

    def _end(self, hidden: Tensor, logits: Tensor | None) -> None:
        """A pass is through: tell of its last chunk and of its end."""
        before = sum(len(part) for part in self._done)
        tokens, self._tokens, self._done = self._tokens, None, []
        rest = None if tokens is None else tokens[:, before:]
        self._tell(rest, hidden[before:], None if logits is None else logits[before:])
        self._session.end()

    def _check(self, named: dict[str, Any]) -> int:
        """Tokens of this pass.

        Raises:
            UsageError: another cache, several sequences, padding.
        """
        if given_cache(named) is not self._cache:
            raise UsageError(
                "the model runs inside a `with compress(...)` block without its cache; pass past_key_values=cache"
            )
        given = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
        if given.shape[0] != 1:
            raise UsageError(
                f"a compressed cache holds one sequence, not {given.shape[0]}; generate sequences one by one, without "
                "beam search and with num_return_sequences=1"
            )
        mask = named.get("attention_mask")
        length = int(given.shape[1])
        if self._span is not None and self._cache.get_seq_length() + length > self._span:
            raise UsageError(f"the sequence gets longer than span={self._span}; give a larger one, or none")
        if isinstance(mask, Tensor) and length > 1:
            if mask.dim() != 2:
                raise UsageError(
                    "a compressed cache makes its own masks; pass a two-dimensional attention mask, or none"
                )
            if not bool(mask.all()):
                raise UsageError("the prompt is padded (its attention mask has zeros); tokenize it without padding")
        return length

    def _make_room(self, length: int) -> None:
        for layer in self._cache.layers:
            if isinstance(layer, SelectiveLayer):
                layer.room = length


def _by_name(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    if not inputs:
        return named
    names = [n for n in inspect.signature(module.forward).parameters if n != "self"]
    return {**dict(zip(names, inputs, strict=False)), **named}


def _with_cache_in_use(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call by their names, with the cache in use: a model's configuration may say otherwise.

    Raises:
        UsageError: the call itself says that it is not to be used.
    """
    named = _by_name(module, inputs, named)
    if named.get("use_cache") not in (None, True):
        raise UsageError("use_cache=False inside a `with compress(...)` block contradicts its cache; leave it out")
    if "use_cache" in inspect.signature(module.forward).parameters:
        named = {**named, "use_cache": True}
    return (), named


def _part(named: dict[str, Any], length: int, start: int, end: int) -> dict[str, Any]:
    """The arguments of a pass over tokens start to end of `length`."""
    part = dict(named)
    for name in _WITH_TOKENS:
        value = part.get(name)
        if isinstance(value, Tensor) and value.shape[-1] == length:
            part[name] = value[..., start:end]
    if isinstance(part.get("inputs_embeds"), Tensor):
        part["inputs_embeds"] = part["inputs_embeds"][:, start:end]
    mask = part.get("attention_mask")
    if isinstance(mask, Tensor):
        part["attention_mask"] = mask[:, : mask.shape[1] - length + end]
    return part


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """A decoder's output with other last hidden states."""
    if isinstance(output, tuple) and not hasattr(output, "keys"):
        return (hidden[None], *output[1:])
    output["last_hidden_state"] = hidden[None]
    return output

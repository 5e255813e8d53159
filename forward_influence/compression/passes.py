"""Watching the forward passes of a model that uses a compressed cache: long prompts in chunks, one pass at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forward_influence.compression.row import Row
from forward_influence.compression.rows import Rows, front
from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.compat import given_cache
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.instrument.steps import steps_of
from forward_influence.utils.defaults import CHUNK

#: Outputs that hold something of every token: who asks for them gets a long prompt read at once.
_OF_ALL_TOKENS = ("hidden_states", "router_logits")
_WITH_TOKENS = ("input_ids", "position_ids", "cache_position", "token_type_ids")


class Passes:
    """Hooks on a model and its decoder that tell the sequences of a block about each pass.

    Args:
        model: the model.
        cache: the block's; every pass must use it, or one of a sequence that is read apart.
        rows: the sequences, which are told of every part of a pass, and of its end.
        span: the longest sequence, where the cache was made for one.
    """

    def __init__(self, model: PreTrainedModel, cache: SelectiveCache, rows: Rows, span: int | None) -> None:
        self._model, self._cache, self._rows, self._span = model, cache, rows, span
        self._instrument: Instrument | None = None
        self._inside_model = self._nested = self._adopted = False
        self._current = cache  # what the running pass, or the last one, is about
        self._served: list[Row] = []
        self._pads: list[int] = []  # of each sequence served, how many tokens of the pass only pad
        self._places: list[int] | None = None  # where the sequences of this pass stand among all, if some have left
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
        _, named = _with_cache_in_use(module, inputs, named)
        return (), self._without_ended(named)

    def _leave_model(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
        """After the whole model, or its failure."""
        if self._is_beside():
            return None
        self._inside_model = False
        hidden, self._hidden = self._hidden, None
        places, self._places = self._places, None
        try:
            if output is not None and hidden is not None:
                logits = output.logits if hasattr(output, "logits") else output[0]
                self._end(hidden, logits if logits.shape[1] == hidden.shape[1] else None)
                if places is not None:
                    return _spread(output, logits, places, len(self._rows.rows))
        finally:
            self._release()
        return output

    def _without_ended(self, named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a pass for the sequences that go on, where it was meant for all of them."""
        if given_cache(named) is not self._cache or not self._rows.batched:
            return named
        self._rows.without_ended()
        count = len(_given(named))
        if count != len(self._rows.rows) or count == len(self._rows.active):
            return named
        self._places = self._rows.places()
        part = dict(named)
        for name in (*_WITH_TOKENS, "inputs_embeds", "attention_mask"):
            value = part.get(name)
            if isinstance(value, Tensor) and value.shape[0] == count:
                part[name] = value[self._places]
        return part

    def _enter_backbone(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        """Before the layers: refuse what cannot be compressed, read all but the last chunk of a long prompt."""
        if self._is_beside():
            return None
        self._refuse_attentions(named)
        self._adopt()
        _, named = _with_cache_in_use(module, inputs, named)
        length = self._check(named)
        self._watch(given_cache(named))
        if self._rows.batched:
            named = self._placed(module, named, length)
        self._tokens, self._done = named.get("input_ids"), []
        if self._served[0].recorder.seen == 0:
            self._make_room(length)
        seen, steps = given_cache(named).get_seq_length(), steps_of(self._model)
        if named.get("position_ids") is None:
            named = {**named, **steps.positions(length, seen, _given(named).device)}
        if "logits_to_keep" in named:  # decoders that leave states out for it; signals are of all tokens
            named = {**named, "logits_to_keep": 0}
        lengths = steps.lengths(length, seen, CHUNK)
        if any(self._wants(named, f"output_{what}") for what in _OF_ALL_TOKENS):
            if steps.single and len(lengths) > 1:
                raise UsageError(
                    "this model reads one token at a time once its states hold something, so that no output of several "
                    "tokens can be given; leave out " + " and ".join(f"output_{what}" for what in _OF_ALL_TOKENS)
                )
            self._turn(0, length)
            return (), named
        start = 0
        for size in lengths[:-1]:
            self._done.append(self._run_nested(module, _part(named, length, start, start + size), start, size))
            start += size
        self._turn(start, length)
        return (), _part(named, length, start, length) if start else named

    def _leave_backbone(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
        """After the layers, or their failure: put the chunks' hidden states together."""
        if self._is_beside():
            return None
        if output is not None:
            self._hidden = output[0]
            if self._done:
                self._hidden = torch.cat([*self._done, output[0]], dim=1)
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
        """Whether a pass is not the sequences' own: a chunk of a longer one, or a rule's, which uses another cache."""
        return self._nested or (self._instrument is not None and self._instrument.cache is not self._current)

    def _watch(self, cache: SelectiveCache) -> None:
        """Show what passes over this cache to those that it is about."""
        assert self._instrument is not None
        self._served = self._rows.serving(cache)
        self._current = self._instrument.cache = cache
        self._instrument.recorder = self._rows.recorder(self._served)

    def _placed(self, module: nn.Module, named: dict[str, Any], length: int) -> dict[str, Any]:
        """The arguments of a pass over a batch: positions and a mask for sequences of their own lengths.

        Raises:
            UsageError: the model takes no positions.
        """
        device = _given(named).device
        seen = [row.recorder.seen for row in self._served]
        shown = [n + length - pad for n, pad in zip(seen, self._pads, strict=True)]
        columns = self._cache.get_seq_length() + length
        named = {**named, "attention_mask": front(shown, columns, device)}
        if "position_ids" in inspect.signature(module.forward).parameters:
            begins = torch.tensor([n - length for n in shown], device=device)
            positions = begins[:, None] + torch.arange(length, device=device)
            named["position_ids"] = positions.clamp_min(0)
        elif len(set(shown)) > 1 or shown[0] != columns:
            raise UsageError(
                f"{type(self._model).__name__} takes no positions, so that sequences of different lengths cannot share "
                "a batch; run them one by one"
            )
        return named

    def _turn(self, start: int, end: int) -> None:
        """Tokens start to end of the pass come next."""
        if self._rows.batched:
            self._rows.turn(self._local(start, end), end - start)

    def _local(self, start: int, end: int) -> list[int]:
        """For each sequence, how many of the tokens start to end of the pass only pad."""
        return [min(max(pad - start, 0), end - start) for pad in self._pads]

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

    def _run_nested(self, module: nn.Module, named: dict[str, Any], start: int, size: int) -> Tensor:
        self._turn(start, start + size)
        self._nested = True
        try:
            hidden: Tensor = module(**named)[0]
        finally:
            self._nested = False
        self._tell(named.get("input_ids"), hidden, None, start)
        return hidden

    def _tell(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None, start: int) -> None:
        """Tokens (rows, q) from `start` on went through."""
        self._nested = True  # some heads run the model
        pads = self._local(start, start + hidden.shape[1])
        try:
            with torch.no_grad():
                for i, (row, pad) in enumerate(zip(self._served, pads, strict=True)):
                    if pad < hidden.shape[1]:
                        own = [None if part is None else part[i, pad:] for part in (tokens, hidden, logits)]
                        row.part(*own)  # type: ignore[arg-type]
        finally:
            self._nested = False

    def _end(self, hidden: Tensor, logits: Tensor | None) -> None:
        """A pass is through: tell of its last chunk and of its end."""
        before = sum(part.shape[1] for part in self._done)
        tokens, self._tokens, self._done = self._tokens, None, []
        rest = None if tokens is None else tokens[:, before:]
        self._tell(rest, hidden[:, before:], None if logits is None else logits[:, before:], before)
        for row in self._served:
            row.end()
        self._rows.settle()

    def _check(self, named: dict[str, Any]) -> int:
        """Tokens of this pass; its padding is noted, and several sequences become a batch.

        Raises:
            UsageError: another cache, another number of sequences than before, padding that cannot be.
        """
        cache = given_cache(named)
        served = self._rows.serving(cache)
        if not served and not (cache is self._cache and not self._rows.batched):
            raise UsageError(
                "the model runs inside a `with compress(...)` block without its cache; pass past_key_values=cache"
            )
        count, length = (int(n) for n in _given(named).shape[:2])
        self._pads = self._padding(named.get("attention_mask"), count, length)
        first = cache is self._cache and not self._rows.batched and cache.get_seq_length() == 0
        if first and (count > 1 or any(self._pads) or len(self._rows.rows) > 1):
            self._rows.several(count)
            served = self._rows.active
        if count != len(served):
            raise UsageError(
                f"{count} sequences came, and this cache holds {len(served)}; give all of them in the first pass, or "
                "open another `with compress(...)` block"
            )
        if any(self._pads):
            self._refuse_padding(length)
        if self._span is not None and max(row.recorder.seen for row in served) + length > self._span:
            raise UsageError(f"the sequence gets longer than span={self._span}; give a larger one, or none")
        return length

    def _padding(self, mask: Any, count: int, length: int) -> list[int]:
        """For each sequence, how many tokens of the pass only pad, in front.

        Raises:
            UsageError: a mask of another form, or padding that is not in front.
        """
        if not isinstance(mask, Tensor) or length == 1:
            return [0] * count
        if mask.dim() != 2:
            raise UsageError("a compressed cache makes its own masks; pass a two-dimensional attention mask, or none")
        shown = mask[:, -length:].bool()
        if not bool((shown[:, 1:] | ~shown[:, :-1]).all()):
            raise UsageError(
                "the attention mask has zeros behind ones; pad on the left (tokenizer.padding_side = 'left')"
            )
        pads: list[int] = (~shown).sum(-1).tolist()
        if max(pads) == length:
            raise UsageError("a sequence of the batch is empty; give each at least one token")
        return pads

    def _refuse_padding(self, length: int) -> None:
        """Refuse padding between what was read and what comes where other layers count tokens for all sequences.

        Raises:
            UsageError: a single sequence, or layers with a sliding window.
        """
        if not self._rows.batched:
            raise UsageError("a text that goes on must not be padded; tokenize it without padding")
        others = len(self._cache.layers) > len(self._cache.full_layers())
        if others and self._cache.get_seq_length():
            raise UsageError(
                "this model has layers with a sliding window: what goes on in a batch must be equally long each time"
            )

    def _make_room(self, length: int) -> None:
        for row in self._served:
            for layer in row.cache.layers:
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


def _given(named: dict[str, Any]) -> Tensor:
    """Tokens (rows, q) of a call, or their embeddings (rows, q, hidden)."""
    found: Tensor = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
    return found


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    """A decoder's output with other last hidden states (rows, q, hidden)."""
    if isinstance(output, tuple) and not hasattr(output, "keys"):
        return (hidden, *output[1:])
    output["last_hidden_state"] = hidden
    return output


def _spread(output: Any, logits: Tensor, places: Sequence[int], count: int) -> Any:
    """A model's output with logits for all sequences: zeros for those that have ended."""
    everyone = logits.new_zeros(count, *logits.shape[1:])
    everyone[list(places)] = logits
    if isinstance(output, tuple) and not hasattr(output, "keys"):
        return (everyone, *output[1:])
    output["logits"] = everyone
    return output

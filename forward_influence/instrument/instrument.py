"""One registered attention function and a few hooks: the unmodified model runs, and what it computes is seen.

No model is patched or copied. While an `Instrument` is on, the model's attention goes through `_attention`, which
shows queries and keys (after the rotary embedding) to a recorder and attends over what the cache layer holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from forward_influence.errors import ForwardInfluenceError
from forward_influence.instrument.active import active
from forward_influence.instrument.attention import Geometry, attend, causal_tail
from forward_influence.instrument.batch import seeing_something
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.compat import attention_implementations
from forward_influence.instrument.given import uncompiled
from forward_influence.instrument.held_elsewhere import attending_layer, has_indexer, holding_layer, with_picked
from forward_influence.instrument.rotary_span import depends_on_length, pinned
from forward_influence.instrument.selective_layer import SelectiveLayer

#: The registered name. transformers branches on names that contain sdpa, flash or flex: this one contains none.
NAME = "forward_influence"

#: Arguments that some models pass along and that change nothing here: windows and chunks are in the mask, positions
#: are in the queries and keys, the rest concerns outputs or kernels of others.
_HARMLESS = frozenset(
    {
        "sliding_window",
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "deterministic",
        "num_items_in_batch",
        "position_embeddings",
        "logits_to_keep",
        "output_router_logits",
        "is_training",
        "tokenizer",  # what `generate` was given to find stop strings with reaches every layer
    }
)


class Recorder(Protocol):
    """Sees what passes through the model."""

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """Called before a layer attends: query (1, query_heads, q, d), key (1, kv_heads, k, d) as the cache gave it.

        In a batch the first axis is the sequences'.
        """

    def hidden(self, layer: int, states: Tensor) -> None:
        """Called with a decoder layer's output (1, q, hidden), before the final norm."""


class Instrument:
    """A context manager during which one model's attention is ours; off again after any exception.

    Args:
        model: the model to observe; it stays as it is.
        recorder: sees queries, keys and, with `decoder_layers`, hidden states.
        decoder_layers: layer index -> module whose output `recorder.hidden` wants.
        span: tokens of the whole sequence, whose rotary factors every pass uses; needed where they depend on it.

    Attributes:
        cache: the selective cache that the running forward uses, so that its layers' own masks are found.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recorder: Recorder | None = None,
        decoder_layers: Mapping[int, nn.Module] | None = None,
        cache: SelectiveCache | None = None,
        *,
        span: int | None = None,
    ) -> None:
        self.model = model
        self.recorder = recorder
        self.cache = cache
        self._decoder_layers = dict(decoder_layers or {})
        self._span = span
        self._stack = ExitStack()
        self._before: str | dict[str, Any] = "sdpa"

    def __enter__(self) -> Instrument:
        if active.instrument is not None:
            raise ForwardInfluenceError("another instrument is on; leave its `with` block first")
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        self._before = attention_implementations(self.model)
        # asked first: it takes a pass of its own, which no recorder must see
        if depends_on_length(self.model) and self._span is None:
            raise ForwardInfluenceError(
                f"the rotary embedding of {type(self.model).__name__} depends on a sequence's length; name its span"
            )
        active.instrument = self
        try:
            self._stack.enter_context(uncompiled())
            self.model.set_attn_implementation(NAME)
            for module in self.model.modules():
                if has_indexer(module):
                    hook = module.register_forward_pre_hook(self._give_own_mask, with_kwargs=True)
                    self._stack.callback(hook.remove)
            for index, module in self._decoder_layers.items():
                self._stack.callback(module.register_forward_hook(self._hidden_hook(index)).remove)
            if self._span is not None:
                self._stack.enter_context(pinned(self.model, self._span))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        active.instrument = None
        self._stack.close()
        self.model.set_attn_implementation(self._before)

    def adopt(self) -> bool:
        """Be on in the running thread too: `generate` that streams often runs in a thread of its own.

        Returns:
            Whether it was off there, so that `release` is due.
        """
        if active.instrument is self:
            return False
        if active.instrument is not None:
            raise ForwardInfluenceError("another instrument is on in this thread; leave its `with` block first")
        active.instrument = self
        return True

    def release(self) -> None:
        """Be off in the running thread, where it was adopted."""
        active.instrument = None

    def _give_own_mask(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        """Before a layer whose indexer picks among what is held: it must see the layer's own mask, where it has one."""
        layer = None if self.cache is None else self.cache.layers[module.layer_idx]  # type: ignore[index]
        if not isinstance(layer, SelectiveLayer):
            return None
        states = named["hidden_states"] if "hidden_states" in named else inputs[0]
        mask = layer.mask_ahead(states.shape[1], states)
        return None if mask is None else (inputs, {**named, "attention_mask": mask})

    def _hidden_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.recorder is not None:
                states = output[0] if isinstance(output, tuple) else output
                if states.dim() > 3:
                    states = _one_stream(states, text_config(self.model.config))
                self.recorder.hidden(index, states)

        return hook


def _one_stream(states: Tensor, config: PreTrainedConfig) -> Tensor:
    """A layer's output (1, q, hidden) where several are kept side by side."""
    active = getattr(config, "altup_active_idx", None)
    if active is not None:  # Gemma 3n: (versions, 1, q, hidden), of which layers read one
        return states[active]
    return states.flatten(2)  # hyper-connections, (1, q, streams, hidden): layers read a mixture of all


@contextmanager
def set_aside() -> Iterator[None]:
    """For a pass beside the one that is watched: it is not recorded, and the cache's masks are not its own."""
    instrument: Instrument | None = active.instrument
    if instrument is None:
        yield
        return
    kept = instrument.recorder, instrument.cache
    instrument.recorder = instrument.cache = None
    try:
        yield
    finally:
        instrument.recorder, instrument.cache = kept


@contextmanager
def beside(
    model: PreTrainedModel, recorder: Recorder, cache: SelectiveCache | None = None, span: int | None = None
) -> Iterator[Instrument]:
    """An instrument for a pass beside others: the one that is on with another recorder and cache, or a new one.

    Args:
        span: as of `Instrument`, where none is on.
    """
    instrument: Instrument | None = active.instrument
    if instrument is None:
        if span is None and depends_on_length(model):
            span = 1
        with Instrument(model, recorder, cache=cache, span=span) as made:
            yield made
        return
    kept = instrument.recorder, instrument.cache
    instrument.recorder, instrument.cache = recorder, cache
    try:
        yield instrument
    finally:
        instrument.recorder, instrument.cache = kept


def _of_batch(mask: Tensor) -> Tensor:
    """A model's mask for sequences of a batch: tokens that only pad see nothing in it, which would give NaN."""
    return seeing_something(mask) if mask.dtype == torch.bool and mask.shape[2] > 1 else mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What a model's attention calls while an instrument is on; shapes as in transformers' interface."""
    instrument: Instrument | None = active.instrument
    if instrument is None:
        raise ForwardInfluenceError("the attention function was called with no instrument on; use `with Instrument()`")
    strange = sorted(k for k, v in others.items() if v is not None and v is not False and k not in _HARMLESS)
    if strange:
        raise ForwardInfluenceError(
            f"{type(module).__name__} passes {', '.join(strange)} to its attention, which this version does not know; "
            "results would be wrong, so the model is refused"
        )
    geometry = Geometry(query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap, s_aux)
    cache = instrument.cache
    index = attending_layer(module, cache)
    if instrument.recorder is not None and index is not None:
        instrument.recorder.attention(index, query, key, geometry, position_bias is not None)
    batched = instrument.cache is not None and instrument.cache.padding is not None
    if batched and position_bias is not None:
        raise ForwardInfluenceError(
            f"{type(module).__name__} adds a bias for positions to its attention, which differs between sequences of a "
            "batch; run them one by one"
        )
    mask, causal = attention_mask, False
    length, held = query.shape[2], key.shape[2]
    layer = None if cache is None or index is None else holding_layer(cache, index, key)
    own, gate = False, None
    if isinstance(layer, SelectiveLayer):
        own, own_mask = layer.own_mask(length)
        gate = layer.gates()
        mask = own_mask if own else mask
    if not own:
        if batched and mask is not None:
            mask = _of_batch(mask[..., -held:])
        elif mask is not None and mask.shape[-1] < held:
            mask = causal_tail(length, held, query.device)[None, None]  # the model's fits a layer that holds less
        elif mask is not None:
            mask = mask[..., :held]
        wants_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is None and wants_causal and length > 1:
            causal = length == held
            mask = None if causal else causal_tail(length, held, query.device)[None, None]
    if indices is not None:
        mask, causal = with_picked(indices, mask, cache, layer, length, held), False
    output = attend(query, key, value, geometry, mask, position_bias, causal, gate)
    return output.transpose(1, 2).contiguous(), None

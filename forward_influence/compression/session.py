"""Compressing a cache while an unmodified model uses it.

    with fi.compress(model, "infokv", budget=0.25, every=1024) as cache:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4096)

Hooks see each forward pass: a long prompt is read in chunks, signals are recorded, and when a pass is over the cache
is compressed where the schedule says so. Nothing of this stays when the block is left.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.compression.choice import Held, choose, pins, remarks
from forward_influence.compression.compressor import Compressor, make_compressor
from forward_influence.compression.guard import guarded
from forward_influence.compression.passes import Passes
from forward_influence.compression.stats import Event, Stats
from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy, examine
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.given import given_model
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.layer_kinds import cache_bytes
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.rotary_span import depends_on_length
from forward_influence.instrument.selective_layer import SelectiveLayer, indices
from forward_influence.instrument.states import state_bytes
from forward_influence.models.fingerprint import mark
from forward_influence.models.holding import holding
from forward_influence.models.loading import Model
from forward_influence.selectors import Selector
from forward_influence.selectors.protection import PROTECT_FIRST
from forward_influence.tracing.evicted_trace import HeldTrace
from forward_influence.tracing.part import Group
from forward_influence.tracing.recorder import Recorder

#: Model -> its mark when it was examined, and what was found.
_anatomies: WeakKeyDictionary[PreTrainedModel, tuple[str, Anatomy]] = WeakKeyDictionary()


class CompressedCache(SelectiveCache):
    """The cache of a `compress` block; give it to `generate` or `model(...)` as `past_key_values`.

    Attributes:
        compressor: what compresses it.
    """

    compressor: Compressor
    _session: Session | None

    @classmethod
    def of_layers(cls, layers: Any) -> SelectiveCache:
        """A plain selective cache: copies are not compressed any more."""
        return SelectiveCache.of_layers(layers)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append to a layer; refused after the block, where nothing would keep its masks right."""
        if self._session is None:
            raise UsageError(
                "this cache belongs to a `with compress(...)` block that was left; use it inside the block"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def stats(self) -> Stats:
        """What is held now, and what it took; the last state after the block."""
        return self._stats if self._session is None else self._session.stats()

    def compress(self) -> None:
        """Compress now, whatever the schedule says."""
        if self._session is None:
            raise UsageError("this cache belongs to a `with compress(...)` block that was left")
        self._session.compress()

    def reset(self) -> None:
        """Refused: a new sequence takes a new block."""
        raise UsageError("a compressed cache holds one sequence; open another `with compress(...)` block for the next")

    def close(self) -> None:
        """The block is left."""
        if self._session is not None:
            self._stats, self._session = self._session.stats(), None


class Session:
    """One `compress` block: records what passes, and compresses when it is time."""

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        compressor: Compressor,
        cache: CompressedCache,
        span: int | None,
    ) -> None:
        self.model, self.compressor, self.cache = model, compressor, cache
        self.layers, self.heads = cache.full_layers(), anatomy.kv_heads
        needs = compressor.needs
        self.rotation = Rotation(model, span or 1) if needs.rotation else None
        self.recorder = Recorder(anatomy, cache, needs, model.device, self.rotation)
        self.recorder.add_ready(model)
        self.prompt = 0
        self._events: list[Event] = []
        self._remarks: dict[str, None] = dict.fromkeys(filter(None, [holding(anatomy.kinds)]))
        self._contiguous: tuple[int, int] | None = None  # (last tokens that all held, tokens seen) when last compressed

    def part(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None) -> None:
        """Tokens (q,) went through."""
        self.recorder.after_pass(tokens, hidden, logits)

    def end(self) -> None:
        """A pass is over: compress if it is time, and stop recording if it will be no more."""
        if self.prompt == 0:
            self.prompt = self.recorder.seen
        last = self._events[-1].seen if self._events else None
        schedule, full = self.compressor.schedule, self.compressor.is_full
        if not full and schedule.due(self.prompt, self.recorder.seen, last):
            self.compress()
        if self.recorder.on and (full or schedule.over(self.recorder.seen, self.prompt)):
            self.recorder.stop()

    def compress(self) -> None:
        """Score what is held and evict the rest."""
        if not self.recorder.on and not self.compressor.is_full:
            raise UsageError("nothing was recorded since the prompt; give every=1024, say, to compress later on")
        begun = self._now()
        with torch.no_grad():
            held = Held(
                positions=[self._layer(i).positions() for i in self.layers],
                seen=self.recorder.seen,
                prompt=self.prompt,
                contiguous=self._still_contiguous(),
                number=len(self._events),
            )
            keep = choose(self.compressor, held, lambda g, s: self._trace(held, g, s), self._frame)
            ends = None if keep is None else pins(self.compressor, held)[:2]
            if keep is not None:
                self._evict(keep)
            self._remarks.update(dict.fromkeys(remarks(self.compressor, held)))
        self._events.append(Event(held.seen, self._held(), self._now() - begun, ends))

    def _trace(self, held: Held, group: Group, skip: int) -> HeldTrace:
        return self.recorder.trace(group, held.of(group), self._evicted(), skip)

    def _frame(self, positions: Tensor) -> HeldTrace:
        group = Group(tuple(range(positions.shape[0])), tuple(range(positions.shape[1])), 0)
        return self.recorder.trace(group, positions, True)

    def _evicted(self) -> bool:
        return any(self._layer(i).held != self._layer(i).seen for i in self.layers)

    def _evict(self, keep: list[Tensor]) -> None:
        for layer, kept in zip(self.layers, keep, strict=True):
            index, holes = indices(kept)
            stored = self._layer(layer)
            stored.__dict__.update(stored.branch(index, holes, 0).__dict__)
            self.recorder.evict(layer, index, holes)
        counts = torch.stack([k.sum(-1) for k in keep])
        tail = min(self._tail(k) for k in keep)
        self._contiguous = (min(tail, int(counts.min())), self.recorder.seen)
        self.recorder.prune([self._layer(i).positions() for i in self.layers])

    @staticmethod
    def _tail(keep: Tensor) -> int:
        """How many of the last entries all heads keep."""
        gone = (~keep).any(0).nonzero()
        return int(keep.shape[1] - 1 - gone[-1]) if len(gone) else int(keep.shape[1])

    def _still_contiguous(self) -> int:
        if self._contiguous is None:
            return self.recorder.seen
        held, at = self._contiguous
        return held + self.recorder.seen - at

    def _layer(self, index: int) -> SelectiveLayer:
        layer = self.cache.layers[index]
        assert isinstance(layer, SelectiveLayer)
        return layer

    def _positions(self) -> tuple[Tensor, ...]:
        return tuple(self._layer(i).positions() for i in self.layers)

    def _held(self) -> Tensor:
        """Entries per layer and kv head; a pass that failed may have left some layers empty."""
        empty = torch.zeros(self.heads, dtype=torch.int64)
        layers = [self._layer(i) for i in self.layers]
        return torch.stack([empty if x.keys is None else (x.positions() >= 0).sum(-1).cpu() for x in layers])

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def stats(self) -> Stats:
        """Up to now."""
        return Stats(
            layers=self.layers,
            prompt=self.prompt,
            seen=self.recorder.seen,
            held=self._held(),
            positions=self._positions(),
            bytes=self.cache.bytes(),
            full_bytes=sum(_full_bytes(layer) for layer in self.cache.layers),
            events=tuple(self._events),
            scoring_seconds=sum(event.seconds for event in self._events),
            head_seconds=self.recorder.head_seconds,
            remarks=tuple(self._remarks),
        )


def _full_bytes(layer: Any) -> int:
    """What a layer would hold had nothing been removed; index keys as many as keys."""
    if not isinstance(layer, SelectiveLayer):
        return cache_bytes(layer)
    held = [t for t in (layer.keys, layer.values, getattr(layer, "indexer_keys", None)) if t is not None]
    return state_bytes(layer) + sum(t[0, ..., 0, :].numel() * layer.seen * t.element_size() for t in held)


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """What a model is made of, examined once, and again where it was changed."""
    now = mark(model)
    if model not in _anatomies or _anatomies[model][0] != now:
        _anatomies[model] = now, examine(model)
    return _anatomies[model][1]


@contextmanager
def compress(
    model: Model | PreTrainedModel,
    rule: str | Selector | Compressor = "infokv",
    budget: str | float | int = 0.25,
    *,
    every: int | None = None,
    prefill: bool = True,
    scheme: str | None = None,
    protect_first: int = PROTECT_FIRST,
    protect_last: int | float | str | None = None,
    keep_prompt: bool | None = None,
    seed: int | None = None,
    span: int | None = None,
) -> Iterator[CompressedCache]:
    """A cache that compresses itself while `model.generate(..., past_key_values=cache)` runs.

    Args:
        model: a loaded `Model`, or any transformers causal LM whose attention can be instrumented, compiled by torch or
            adapted by PEFT too; inside the block it runs uncompiled.
        rule, budget, every, prefill, scheme, protect_first, protect_last, keep_prompt: see `make_compressor`. A
            ready `Compressor` brings its own.
        seed: of random rules; default: the rule's own.
        span: how long the sequence will get at most; layers with a sliding window at least that long count as full.
            Needed for models whose rotary embedding depends on it (LongRoPE, dynamic NTK): all of the sequence is
            rotated by the factors of that length.

    Yields:
        The `CompressedCache`. It serves one sequence; its `stats` tell what is held.

    Raises:
        UsageError: an unknown compressor, a budget of nothing, a model without full-attention layers, and later on
            batches, padded prompts, generation settings that cannot be with a compressed cache (see
            `forward_influence.models.generation_settings`), or a forward pass without the cache.
    """
    if isinstance(rule, Compressor):
        compressor = rule
    else:
        pinned: dict[str, Any] = {"protect_first": protect_first, "protect_last": protect_last}
        pinned["keep_prompt"] = keep_prompt
        compressor = make_compressor(rule, budget, every=every, prefill=prefill, scheme=scheme, **pinned)
    if seed is not None:
        compressor = dataclasses.replace(compressor, rule=compressor.rule.at(seed))
    if isinstance(model, Model):
        model.require_unchanged()
    plain = model.model if isinstance(model, Model) else given_model(model)
    anatomy = model.anatomy if isinstance(model, Model) else anatomy_of(plain)
    if span is None and depends_on_length(plain):
        raise UsageError(
            f"the rotary embedding of {type(plain).__name__} depends on how long a sequence gets; say so with span=N, "
            "prompt and what is generated together"
        )
    cache = CompressedCache(plain.config, span=span)
    if not cache.full_layers():
        raise UsageError(
            f"every layer of {type(plain).__name__} has a sliding window, so that nothing can be compressed; if the "
            "sequence stays within it, say so with span=N"
        )
    cache.compressor = compressor
    session = cache._session = Session(plain, anatomy, compressor, cache, span)
    with ExitStack() as stack:
        stack.callback(cache.close)
        if session.rotation is not None:
            session.rotation.attach()
            stack.callback(session.rotation.detach)
            session.rotation.verify(plain, torch.zeros(1, dtype=torch.int64, device=plain.device), session.layers)
        watched = anatomy.decoder_layers if compressor.needs.hidden else {}
        instrument = stack.enter_context(Instrument(plain, session.recorder, watched, cache, span=span))
        stack.enter_context(guarded(plain))
        Passes(plain, cache, session, span).attach(instrument, stack)
        yield cache

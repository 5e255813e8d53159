"""One sequence whose cache is compressed: what is recorded of it, and when and what is evicted."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.compression.choice import Held, choose, pins, remarks
from forward_influence.compression.compressor import Compressor
from forward_influence.compression.stats import Event, Stats
from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.layer_kinds import cache_bytes
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.selective_layer import SelectiveLayer, indices
from forward_influence.instrument.states import state_bytes
from forward_influence.models.holding import holding
from forward_influence.tracing.evicted_trace import HeldTrace
from forward_influence.tracing.part import Group
from forward_influence.tracing.recorder import Recorder


class Row:
    """One sequence: records what passes, and compresses its cache when it is time.

    Args:
        cache: its own; in a batch the layers of this one are views of what the batch holds.
        rotation: the model's rotary embedding, where the compressor reads it, attached.

    Attributes:
        recorder: sees what passes.
        prompt: tokens of the first pass.
        left: whether it takes part no more, so that nothing of it is kept but `stats`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        compressor: Compressor,
        cache: SelectiveCache,
        rotation: Rotation | None,
    ) -> None:
        self.model, self.compressor, self.cache = model, compressor, cache
        self.layers, self.heads = cache.full_layers(), anatomy.kv_heads
        self.rotation = rotation
        self.recorder = Recorder(anatomy, cache, compressor.needs, model.device, rotation)
        self.recorder.add_ready(model)
        self.prompt = 0
        self.left = False
        self._changed = False
        self._final: Stats | None = None
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

    def changed(self) -> bool:
        """Whether entries were evicted since this was last asked."""
        changed, self._changed = self._changed, False
        return changed

    def leave(self) -> None:
        """Take part no more: what is held and recorded is given up."""
        self._final, self.left = self.stats(), True
        self.recorder.stop()
        self.cache.layers = []

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
            self._layer(layer).evict(index, holes)
            self.recorder.evict(layer, index, holes)
        self._changed = True
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
        """Up to now, or to when it left."""
        if self._final is not None:
            return self._final
        return Stats(
            layers=self.layers,
            prompt=self.prompt,
            seen=self.recorder.seen,
            held=self._held(),
            positions=self._positions(),
            bytes=self.cache.bytes(),
            spare_bytes=self.cache.spare_bytes(),
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

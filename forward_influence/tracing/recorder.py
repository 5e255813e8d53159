"""Record what rules declare while a sequence runs through an instrumented model: a whole context, or a generation.

A context goes through chunk by chunk, so that memory grows neither with context squared nor layers x hidden.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.attention import Geometry, causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import forward_hidden, parts
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.models.token_ids import checked_tokens, require_known
from forward_influence.tracing.columns import TokenColumns
from forward_influence.tracing.evicted_trace import HeldTrace
from forward_influence.tracing.logits import Blocks, of_chunks, of_passes
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.part import Group, Part
from forward_influence.tracing.signals.base import Attended, Logits, Ready, Recording, Setting
from forward_influence.tracing.trace import Trace
from forward_influence.utils.defaults import CHUNK
from forward_influence.utils.progress import Progress, Silent

_TOKEN = "token id"  # a column beside those of signals, whose names hold no blank


class Recorder:
    """Sees every forward pass, chunks of a context, whole prompts and single tokens alike.

    Args:
        anatomy: of the model.
        cache: what the sequence's keys and values are in; what is recorded of entries stays in step with it.
        needs: what the rules read.
        device: where values are wanted.
        rotation: where `needs` asks for it, the model's rotary embedding, attached.
        logits: how logits are had, see `logits`; by default those of a generation.

    Attributes:
        layers: the full-attention layers.
        seen: tokens that went through.
        on: whether anything is recorded; off once nothing will be compressed any more.
        geometry: layer -> what its attention logits depend on beside queries and keys.
        biased: whether the model adds a position bias to its attention.
        recordings: signal by key.
        columns: numbers per token.
        head_seconds: time in head passes and signals made of logits.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        cache: SelectiveCache,
        needs: Needs,
        device: torch.device,
        rotation: Rotation | None = None,
        logits: Blocks | None = None,
    ) -> None:
        self._anatomy, self._cache, self._needs, self._rotation = anatomy, cache, needs, rotation
        self._logits = logits or of_passes(anatomy.head)
        self.layers = cache.full_layers()
        self.seen = 0
        self.on = True
        self.geometry: dict[int, Geometry] = {}
        self.biased = False
        self.columns = TokenColumns()
        self.head_seconds = 0.0
        self._outputs: dict[int, Tensor] = {}
        setting = Setting(anatomy, self.layers, device, self.columns, rotation)
        self.recordings: dict[str, Recording] = {}
        for signal, number in needs.asked:
            if (recording := signal.recording(number, setting)) is not None:
                self.recordings[signal.key(number)] = recording

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """Queries (1, query_heads, q, d) and all keys of a layer."""
        if not self.on:
            return
        self.biased |= biased
        if layer not in self.layers:
            return
        self.geometry[layer] = geometry
        attended = Attended(
            layer, query[0], key[0], geometry, self.seen, lambda: self._visible(layer, query.shape[2], key.shape[2])
        )
        for recording in self.recordings.values():
            recording.attention(attended)

    def _visible(self, layer: int, length: int, held: int) -> Tensor:
        stored = self._cache.layers[layer]
        assert isinstance(stored, SelectiveLayer)
        visible = causal_tail(length, held, stored.device)[None]
        if stored.holes is None:
            return visible
        return visible & ~F.pad(stored.holes, (0, held - stored.holes.shape[1]))[:, None]

    def hidden(self, layer: int, states: Tensor) -> None:
        """A layer's output (1, q, hidden); all go on together when the last one's is there."""
        if not self.on or not self._needs.hidden:
            return
        if layer in self.layers:
            self._outputs[layer] = states[0]
        if layer == self._anatomy.layers - 1:
            outputs = [self._outputs[i] for i in self.layers]
            for recording in self.recordings.values():
                recording.hidden(outputs, states[0])
            self._outputs.clear()

    def after_pass(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None = None) -> None:
        """A pass over tokens (q,) is through: hidden (q, hidden) are its last hidden states.

        Args:
            tokens: None where the model was given embeddings.
            logits: (q, vocabulary) where the model computed them anyway.
        """
        length = hidden.shape[0]
        if self.on:
            self.columns.add(_TOKEN, torch.full((length,), -1, device=hidden.device) if tokens is None else tokens)
            for recording in self.recordings.values():
                recording.passed(tokens, hidden)
        if self.on and self._needs.head:
            begun = time.perf_counter()
            done = 0
            for rows in self._logits(hidden, logits):
                block = Logits(rows, None if tokens is None else tokens[done : done + len(rows)])
                for recording in self.recordings.values():
                    recording.logits(block)
                done += len(rows)
            self.head_seconds += time.perf_counter() - begun
        self.seen += length

    def evict(self, layer: int, index: Tensor, holes: Tensor | None) -> None:
        """The cache's layer keeps the entries at `index` (kv_heads, kept)."""
        for recording in self.recordings.values():
            recording.evict(layer, index, holes)

    def prune(self, positions: list[Tensor]) -> None:
        """Forget what is recorded of tokens that no layer and head holds; `positions` are those held, per layer."""
        self.columns.prune(positions, self.seen)

    def add_ready(self, model: PreTrainedModel) -> None:
        """Offer rules what needs name and no pass has to record."""
        for signal, number in self._needs.asked:
            if (value := signal.ready(model)) is not None:
                self.recordings[signal.key(number)] = Ready(signal, value)

    def stop(self) -> None:
        """Nothing will be compressed any more: record nothing, hold nothing."""
        self.on = False
        self.recordings.clear()
        self._outputs.clear()
        self.columns = TokenColumns()

    def trace(self, group: Group, positions: Tensor, evicted: bool, skip: int = 0) -> HeldTrace:
        """What the layers and heads of a group hold, for rules to score.

        Args:
            positions: (layers, kv_heads, n) of the group.
            evicted: whether any token is held no more.
            skip: leave out so many entries in front.
        """
        anatomy, positions = self._anatomy, positions[..., skip:]
        share = anatomy.query_heads // anatomy.kv_heads
        part = Part(group, positions, self.seen, evicted or skip > 0, anatomy.kv_heads, share)
        layers = tuple(self.layers[row] for row in group.rows)
        tokens = self.columns.column(_TOKEN)
        assert tokens is not None
        return HeldTrace(
            tokens=self.columns.at(_TOKEN, positions, group.rows, self.seen) if part.evicted else tokens,
            layers=layers,
            query_heads=len(part.query_heads),
            kv_heads=len(group.heads),
            first=0,
            last=part.n,
            cache=self._cache,
            geometry=[part.geometry(self.geometry[i]) for i in layers if i in self.geometry],
            position_biased=self.biased,
            rotation=self._rotation,
            latent=anatomy.latent,
            needs=self._needs,
            part=part,
            recordings=self.recordings,
        )


def ready_rotation(model: PreTrainedModel, token: Tensor, layers: tuple[int, ...], length: int) -> Rotation:
    """A model's rotary embedding, checked on one token (1,) for sequences of `length` tokens, not attached.

    Raises:
        UsageError: it cannot be undone in all of the layers.
    """
    rotation = Rotation(model, length)
    rotation.attach()
    try:
        with torch.no_grad():
            rotation.verify(model, token, layers)
    finally:
        rotation.detach()
    return rotation


def record(
    model: object,
    tokens: Tensor,
    needs: Needs | None = None,
    *,
    span: int | None = None,
    first: int = 0,
    last: int | None = None,
    chunk: int = CHUNK,
    rotation: bool = False,
    progress: Progress | None = None,
) -> Trace:
    """Run a context through the model once and keep what `needs` names.

    Args:
        model: a loaded `Model`.
        tokens: (n,) token ids of the context.
        span: context + continuation tokens, which decides whether a window is one; default n.
        first, last: the candidates are tokens first <= i < last (default: all).
        chunk: tokens per forward pass.
        rotation: keep the model's rotary embedding, so that keys can be moved to other positions.

    Returns:
        The `Trace`, whose cache holds the context.

    Raises:
        UsageError: no full-attention layer to select from, a signal that this model cannot give, or tokens that are no
            sequence of ids within the model's positions.
        ForwardInfluenceError: an id that the model has no row for.
    """
    from forward_influence.models.loading import Model

    if not isinstance(model, Model):
        raise UsageError(f"record takes a Model, not a {type(model).__name__}; use load_model or wrap_model")
    model.require_unchanged()
    anatomy, needs, progress = model.anatomy, needs or Needs(), progress or Silent()
    tokens = checked_tokens(tokens, "the context", model.anatomy.positions).to(model.device)
    require_known(model, tokens, "the context")
    n = int(tokens.shape[0])
    layers = anatomy.full_layers(span or n)
    if not layers:
        shortest = min(w for w in anatomy.windows if w)
        raise UsageError(f"every layer has a sliding window of {shortest} or so; nothing can be ablated at this length")
    cache = SelectiveCache(model.model.config, span=span or n, room=n)
    rotary = ready_rotation(model.model, tokens[:1], layers, span or n) if needs.rotation or rotation else None
    recorder = Recorder(anatomy, cache, needs, model.device, rotary, of_chunks(anatomy.head))
    watched = anatomy.decoder_layers if needs.hidden else {}
    hidden = tokens.new_empty(0)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if rotary is not None:
            rotary.attach()
            stack.callback(rotary.detach)
        instrument = stack.enter_context(Instrument(model.model, recorder, watched, cache, span=span or n))
        for part in parts(model.model, tokens, cache, chunk):
            hidden = forward_hidden(model.model, part, instrument)
            recorder.after_pass(part, hidden)
            progress.advance(len(part), "context")
        share = anatomy.query_heads // anatomy.kv_heads
        whole = Part.whole(len(layers), anatomy.kv_heads, share, n, model.device)
        return Trace(
            tokens=tokens,
            layers=layers,
            query_heads=anatomy.query_heads,
            kv_heads=anatomy.kv_heads,
            first=first,
            last=n if last is None else last,
            cache=cache,
            last_hidden=hidden[-1],
            geometry=[recorder.geometry[i] for i in layers],
            position_biased=recorder.biased,
            rotation=rotary,
            latent=anatomy.latent,
            span=span or n,
            needs=needs,
            recorded={key: recording.value(whole) for key, recording in recorder.recordings.items()}
            | ready_signals(needs, model.model),
        )


def ready_signals(needs: Needs, model: PreTrainedModel) -> dict[str, object]:
    """What needs name and no pass has to record, by key."""
    found = {signal.key(number): signal.ready(model) for signal, number in needs.asked}
    return {key: value for key, value in found.items() if value is not None}

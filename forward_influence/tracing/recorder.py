"""Record one pass over a context, chunk by chunk: memory grows neither with context squared nor layers x hidden."""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.attention import Geometry, ReceivedAttention, causal_tail
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import forward_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.lm_head import Head, HeadBuffers, head_rows
from forward_influence.instrument.rotary import Rotation
from forward_influence.models.token_ids import checked_tokens, require_known
from forward_influence.tracing.signals import Needs
from forward_influence.tracing.trace import Moments, Trace
from forward_influence.utils.numerics import at_least_float32, entropy
from forward_influence.utils.progress import Progress, Silent

_FIRST_MOMENT_TOKEN = 4  # attention sinks have queries unlike all others (arXiv:2510.00636)


class ContextRecorder:
    """Collects what `needs` names while a context runs through an instrumented model."""

    def __init__(self, anatomy: Anatomy, layers: tuple[int, ...], n: int, needs: Needs, device: torch.device) -> None:
        self._needs, self._n = needs, n
        self._row = {layer: i for i, layer in enumerate(layers)}
        self._last_layer = anatomy.layers - 1
        self.queries: dict[int, Tensor] = {}
        self.geometry: dict[int, Geometry] = {}
        self.biased = False
        self.device = device
        self._accumulated: dict[int, Tensor] = {}
        self._received = ReceivedAttention()
        self._sums: dict[int, list[Tensor]] = {}
        self._chunk_hidden: dict[int, Tensor] = {}
        self._change: list[Tensor] = []
        self._tokens_before = 0
        self.rotation: Rotation | None = None

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """Keep the window's queries; add up attention and query moments where asked."""
        self.geometry[layer] = geometry
        self.biased |= biased
        if layer not in self._row:
            return
        if self._needs.window:
            before = self.queries.get(layer)
            joined = query[0] if before is None else torch.cat([before, query[0]], dim=1)
            self.queries[layer] = joined[:, -self._needs.window :].clone()
        if self._needs.accumulated_attention:
            self._accumulate(layer, query[0], key[0], geometry)
        if self._needs.query_moments:
            self._add_moments(layer, query[0])

    def hidden(self, layer: int, states: Tensor) -> None:
        """Compare each layer's output with the last one's, a chunk at a time."""
        if not self._needs.representation_change:
            return
        if layer in self._row:
            self._chunk_hidden[layer] = states[0]
        if layer == self._last_layer:
            last = at_least_float32(states[0])
            rows = [
                torch.zeros_like(last[:, 0])
                if index == self._last_layer
                else 1 - F.cosine_similarity(at_least_float32(self._chunk_hidden[index]).to(last.device), last, dim=-1)
                for index in self._row
            ]
            self._change.append(torch.stack(rows))
            self._chunk_hidden.clear()

    def after_chunk(self, length: int) -> None:
        """The chunk of `length` tokens is through."""
        self._tokens_before += length

    def _accumulate(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry) -> None:
        total = self._accumulated.setdefault(
            layer, torch.zeros(key.shape[0], self._n, dtype=at_least_float32(key).dtype, device=key.device)
        )
        visible = causal_tail(query.shape[1], key.shape[1], key.device)[None]
        total[:, : key.shape[1]] += self._received.of(query, key, geometry, visible)

    def _add_moments(self, layer: int, query: Tensor) -> None:
        if self.rotation is None:
            raise UsageError("queries before the rotary embedding are needed, but this model shows no rotary embedding")
        plain = self.rotation.undo(layer, at_least_float32(query))[
            :, max(0, _FIRST_MOMENT_TOKEN - self._tokens_before) :
        ]
        plain = plain.double()
        sums = self._sums.setdefault(layer, [])
        parts = [torch.tensor(float(plain.shape[1])), plain.sum(1), plain.transpose(1, 2) @ plain]
        self._sums[layer] = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]

    def moments(self) -> list[Moments]:
        """Mean and covariance per recorded layer."""
        result = []
        for layer in self._row:
            count, total, squares = self._sums[layer]
            mean = total / count
            covariance = squares / count - mean[:, :, None] * mean[:, None, :]
            result.append(Moments(mean.to(self.device), covariance.to(self.device)))
        return result

    def accumulated(self) -> Tensor:
        """(L, H, n)."""
        device = next(iter(self._accumulated.values())).device
        return torch.stack([self._accumulated[layer].to(device) for layer in self._row])

    def change(self) -> Tensor:
        """(L, n)."""
        return torch.cat(self._change, dim=1)


class _HeadSignals:
    """Entropy and surprisal of the context from its last hidden states, block by block."""

    def __init__(self, head: Head, tokens: Tensor, needs: Needs) -> None:
        self._head, self._tokens, self._needs = head, tokens, needs
        self._buffers: HeadBuffers | None = None
        # of the distributions given at each token, from which both alignments come
        self._entropy: dict[int, list[Tensor]] = {k: [] for k in sorted(needs.entropy | needs.next_entropy)}
        self.surprisal: list[Tensor] = []
        self._done = 0

    def add(self, hidden: Tensor) -> None:
        """Take in the (rows, hidden) of the next tokens."""
        if self._buffers is None:
            self._buffers = HeadBuffers(self._head, hidden, head_rows(self._head, hidden), blocks=1)
        for rows in hidden.split(self._buffers.rows):
            logits = self._buffers.logits(0, rows)
            for top_k, parts in self._entropy.items():
                parts.append(entropy(logits, top_k))
            if self._needs.surprisal:
                following = self._tokens[self._done + 1 : self._done + 1 + len(rows)].to(logits.device)
                log_p = logits[: len(following)].log_softmax(-1)
                self.surprisal.append(-log_p.gather(-1, following[:, None])[:, 0])
            self._done += len(rows)

    def next_entropy(self) -> dict[int, Tensor]:
        """top_k -> (n,), uncertainty about what comes after each token."""
        return {k: torch.cat(parts) for k, parts in self._entropy.items() if k in self._needs.next_entropy}

    def own_entropy(self) -> dict[int, Tensor]:
        """top_k -> (n,), uncertainty about each token itself; 0 for the first, which nothing predicts."""
        wanted = {k: torch.cat(parts) for k, parts in self._entropy.items() if k in self._needs.entropy}
        return {k: torch.cat([given.new_zeros(1), given[:-1]]) for k, given in wanted.items()}


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
    chunk: int = 512,
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
        shortest = min(w for w in anatomy.windows if w is not None)
        raise UsageError(f"every layer has a sliding window of {shortest} or so; nothing can be ablated at this length")
    cache = SelectiveCache(model.model.config, span=span or n, room=n)
    recorder = ContextRecorder(anatomy, layers, n, needs, model.device)
    signals = _HeadSignals(anatomy.head, tokens, needs)
    watched = anatomy.decoder_layers if needs.representation_change else {}
    moves = needs.query_moments or rotation
    rotary = ready_rotation(model.model, tokens[:1], layers, span or n) if moves else None
    recorder.rotation = rotary
    hidden = tokens.new_empty(0)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if rotary is not None:
            rotary.attach()
            stack.callback(rotary.detach)
        instrument = stack.enter_context(Instrument(model.model, recorder, watched, cache, span=span or n))
        for part in tokens.split(chunk):
            hidden = forward_hidden(model.model, part, instrument)
            recorder.after_chunk(len(part))
            if needs.head:
                signals.add(hidden)
            progress.advance(len(part), "context")
        trace = Trace(
            tokens=tokens,
            layers=layers,
            query_heads=anatomy.query_heads,
            kv_heads=anatomy.kv_heads,
            first=first,
            last=n if last is None else last,
            cache=cache,
            last_hidden=hidden[-1],
            window_queries=[recorder.queries[i] for i in layers] if needs.window else [],
            geometry=[recorder.geometry[i] for i in layers],
            position_biased=recorder.biased,
            # signals on one device, whatever devices a model is spread over
            _entropy={k: values.to(model.device) for k, values in signals.own_entropy().items()},
            _next_entropy={k: values.to(model.device) for k, values in signals.next_entropy().items()},
            _representation_change=recorder.change().to(model.device) if needs.representation_change else None,
            _accumulated_attention=recorder.accumulated().to(model.device) if needs.accumulated_attention else None,
            _query_moments=recorder.moments() if needs.query_moments else None,
            rotation=rotary,
            span=span or n,
            _model=model.model if needs.model else None,
        )
        if needs.surprisal:
            rest = torch.cat(signals.surprisal).to(model.device)
            trace._surprisal = torch.cat([rest.new_zeros(1), rest])
    return trace

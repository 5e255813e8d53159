"""What is recorded while a sequence grows: only what the rule declares, for what the cache holds."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.instrument.architecture import Anatomy
from forward_influence.instrument.attention import Geometry, ReceivedAttention, causal_tail
from forward_influence.instrument.cache import SelectiveCache, SelectiveLayer
from forward_influence.instrument.rotary import Rotation
from forward_influence.tracing.evicted_trace import Group, HeldTrace, geometry_of, moments_of, query_heads
from forward_influence.tracing.live_signals import LastRows, QueryMoments, Received, TokenSignals
from forward_influence.tracing.signals import Needs, entropy_need
from forward_influence.utils.numerics import at_least_float32, entropy

_HEAD_BLOCK = 64  # rows of logits at a time
_FIRST_MOMENT_TOKEN = 4  # attention sinks have queries unlike all others (arXiv:2510.00636)


class LiveRecorder:
    """Sees every forward pass of a generation, whole prompts and single tokens alike.

    Args:
        anatomy: of the model.
        cache: what is compressed; entries received and held stay in step with it.
        needs: what the rule reads.
        rotation: where query moments are needed, the model's rotary embedding, attached.

    Attributes:
        on: whether anything is recorded; off once nothing will be compressed any more.
        head_seconds: time in head passes and entropies.
    """

    def __init__(self, anatomy: Anatomy, cache: SelectiveCache, needs: Needs, rotation: Rotation | None = None) -> None:
        self._anatomy, self._cache, self._needs, self._rotation = anatomy, cache, needs, rotation
        self.layers = cache.full_layers()
        self._rows = {layer: row for row, layer in enumerate(self.layers)}
        self.signals = TokenSignals()
        self.seen = 0
        self.on = True
        self.head_seconds = 0.0
        self._queries = {layer: LastRows(needs.window) for layer in self.layers} if needs.window else {}
        received = ReceivedAttention()
        self._received = {layer: Received(received) for layer in self.layers} if needs.accumulated_attention else {}
        self._moments = {layer: QueryMoments() for layer in self.layers} if needs.query_moments else {}
        self._geometry: dict[int, Geometry] = {}
        self._biased = False
        self._hidden: dict[int, Tensor] = {}
        self._last_log_p: Tensor | None = None
        self._last_entropy: dict[int, Tensor] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, geometry: Geometry, biased: bool) -> None:
        """Keep the window's queries; add up attention and query moments where asked."""
        if not self.on or layer not in self._rows:
            return
        self._geometry[layer] = geometry
        self._biased |= biased
        if self._queries:
            self._queries[layer].add(query[0])
        if self._received:
            self._received[layer].add(query[0], key[0], geometry, self._visible(layer, query.shape[2], key.shape[2]))
        if self._moments:
            assert self._rotation is not None
            plain = self._rotation.undo(layer, at_least_float32(query[0]))
            self._moments[layer].add(plain[:, max(0, _FIRST_MOMENT_TOKEN - self.seen) :])

    def _visible(self, layer: int, length: int, held: int) -> Tensor:
        stored = self._cache.layers[layer]
        assert isinstance(stored, SelectiveLayer)
        visible = causal_tail(length, held, stored.device)[None]
        if stored.holes is None:
            return visible
        return visible & ~F.pad(stored.holes, (0, held - stored.holes.shape[1]))[:, None]

    def hidden(self, layer: int, states: Tensor) -> None:
        """Compare each layer's output with the last one's when that is there."""
        if not self.on or not self._needs.representation_change:
            return
        if layer in self._rows:
            self._hidden[layer] = states[0]
        if layer == self._anatomy.layers - 1:
            self.signals.add("change", change_of([self._hidden[i] for i in self.layers], states[0], self.layers, layer))
            self._hidden.clear()

    def after_pass(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None = None) -> None:
        """A pass over tokens (q,) is through: hidden (q, hidden) are its last hidden states.

        Args:
            tokens: None where the model was given embeddings.
            logits: (q, vocabulary) where the model computed them anyway.
        """
        length = hidden.shape[0]
        if self.on:
            self.signals.add("token", torch.full((length,), -1, device=hidden.device) if tokens is None else tokens)
        if self.on and self._needs.head:
            begun = time.perf_counter()
            self._head_signals(tokens, hidden, logits)
            self.head_seconds += time.perf_counter() - begun
        self.seen += length

    def _head_signals(self, tokens: Tensor | None, hidden: Tensor, logits: Tensor | None) -> None:
        if self._needs.surprisal and tokens is None:
            raise UsageError("surprisal needs token ids; call the model with input_ids, not with embeddings")
        for start in range(0, hidden.shape[0], _HEAD_BLOCK):
            rows = slice(start, start + _HEAD_BLOCK)
            block = self._anatomy.head(hidden[rows]) if logits is None else at_least_float32(logits[rows])
            for top_k in self._needs.entropy | self._needs.next_entropy:
                self._add_entropy(top_k, entropy(block, top_k))
            if self._needs.surprisal:
                assert tokens is not None
                self._add_surprisal(tokens[rows], block)

    def _add_entropy(self, top_k: int, given: Tensor) -> None:
        """Of the distributions given at some tokens (q,): each token's own is the one before, across passes too."""
        if top_k in self._needs.next_entropy:
            self.signals.add(entropy_need(top_k, "next"), given)
        if top_k in self._needs.entropy:
            before = self._last_entropy.get(top_k, given.new_zeros(1))
            self.signals.add(entropy_need(top_k, "own"), torch.cat([before, given[:-1]]))
            self._last_entropy[top_k] = given[-1:].clone()

    def _add_surprisal(self, tokens: Tensor, logits: Tensor) -> None:
        """Each token's surprisal comes from the distribution before it; the last one waits for its token."""
        log_p = logits.log_softmax(-1)
        before = log_p[:-1] if self._last_log_p is None else torch.cat([self._last_log_p, log_p[:-1]])
        surprisal = -before.gather(-1, tokens[-len(before) :, None])[:, 0] if len(before) else log_p.new_zeros(0)
        first = surprisal.new_zeros(len(tokens) - len(before))
        self.signals.add("surprisal", torch.cat([first, surprisal]))
        self._last_log_p = log_p[-1:].clone()

    def evict(self, layer: int, index: Tensor, holes: Tensor | None) -> None:
        """The cache's layer keeps the entries at `index` (kv_heads, kept)."""
        if self._received:
            self._received[layer].evict(index, holes)

    def prune(self, positions: list[Tensor]) -> None:
        """Forget the signals of tokens that no layer and head holds; `positions` are those held, per layer."""
        self.signals.prune(positions, self.seen)

    def stop(self) -> None:
        """Nothing will be compressed any more: record nothing, hold nothing."""
        self.on = False
        self.signals = TokenSignals()
        for store in (self._queries, self._received, self._moments, self._hidden):
            store.clear()
        self._last_log_p = None
        self._last_entropy.clear()

    def trace(self, group: Group, positions: Tensor, evicted: bool, skip: int = 0) -> HeldTrace:
        """What the layers and heads of a group hold, for rules to score.

        Args:
            positions: (layers, kv_heads, n) of the group.
            skip: leave out so many entries in front.
        """
        anatomy, positions = self._anatomy, positions[..., skip:]
        layers = [self.layers[row] for row in group.rows]
        share = anatomy.query_heads // anatomy.kv_heads
        theirs = query_heads(group.heads, share)
        whole = len(group.heads) == anatomy.kv_heads
        received = self._attention_received(group, positions.shape[-1]) if group.n and self._received else None
        queries = [self._queries[i].rows(self._needs.window) for i in layers] if self._queries else []
        moments = (
            [moments_of(self._moments[i].moments(), group.heads, share) for i in layers] if self._moments else None
        )
        evicted = evicted or skip > 0
        tokens = self.signals.column("token")
        assert tokens is not None
        return HeldTrace(
            tokens=self.signals.at("token", positions, group.rows, self.seen) if evicted else tokens,
            layers=tuple(layers),
            query_heads=len(theirs),
            kv_heads=len(group.heads),
            first=0,
            last=positions.shape[-1],
            cache=self._cache,
            window_queries=queries if whole else [q[theirs] for q in queries],
            geometry=[geometry_of(self._geometry[i], group.heads, share) for i in layers if i in self._geometry],
            position_biased=self._biased,
            _accumulated_attention=received,
            _query_moments=moments,
            rotation=self._rotation,
            group=group,
            held_positions=positions,
            seen_tokens=self.seen,
            signals=self.signals,
            evicted=evicted,
        )

    def _attention_received(self, group: Group, n: int) -> Tensor:
        """Of the last n entries of the group's heads, (layers, kv_heads, n)."""
        totals = [self._received[self.layers[row]].total for row in group.rows]
        return torch.stack([t[list(group.heads), t.shape[1] - n :] for t in totals if t is not None])


def change_of(outputs: list[Tensor], last: Tensor, layers: tuple[int, ...], last_layer: int) -> Tensor:
    """1 - cos between layers' outputs (q, hidden) and the last layer's, (layers, q); 0 for the last layer itself."""
    last = at_least_float32(last)
    if last.shape[0] == 1:  # decoding: one call for all layers
        change = 1 - F.cosine_similarity(at_least_float32(torch.stack(outputs)), last[None], dim=-1)
    else:
        change = torch.stack([1 - F.cosine_similarity(at_least_float32(o), last, dim=-1) for o in outputs])
    if last_layer in layers:
        change[layers.index(last_layer)] = 0
    return change

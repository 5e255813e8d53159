"""What one pass over a context recorded, and the signals that rules read from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import Geometry, probabilities
from forward_influence.instrument.cache import SelectiveCache, SelectiveLayer
from forward_influence.instrument.rotary import Rotation
from forward_influence.tracing.signals import DEFAULT_TOP_K, DEFAULT_WINDOW, Needs, entropy_need


@dataclass(frozen=True)
class Moments:
    """Mean and covariance (divided by the count) of a layer's queries before the rotary embedding.

    Attributes:
        mean: (query_heads, d).
        covariance: (query_heads, d, d).
    """

    mean: Tensor
    covariance: Tensor


@dataclass
class Trace:
    """One pass over a context of n tokens. L are the full-attention layers, H the kv heads.

    Attributes:
        tokens: (n,) token ids.
        layers: indices in the model of the L layers that can be ablated.
        kv_heads, query_heads: heads per layer.
        first, last: candidates are the tokens first <= i < last; others are protected.
        cache: holds the context's keys and values.
        last_hidden: (hidden,) the model's last hidden state at the last context token.
        window_queries: per layer (query_heads, W, d), the last W queries.
        geometry: per layer, what its attention logits depend on beside queries and keys.
        rotation: the model's rotary embedding, where query moments were recorded.
        most_observed: a bound on the observation windows of rules, for small caches.
        span: context + continuation tokens that it was recorded for: a window at least that long counted as none.
        future: zone of the continuation -> gradients (samples, L, H, n), where a rule that looks ahead is measured.
    """

    tokens: Tensor
    layers: tuple[int, ...]
    query_heads: int
    kv_heads: int
    first: int
    last: int
    cache: SelectiveCache
    last_hidden: Tensor | None = None
    window_queries: list[Tensor] = field(default_factory=list)
    geometry: list[Geometry] = field(default_factory=list)
    position_biased: bool = False
    _entropy: dict[int, Tensor] = field(default_factory=dict)
    _next_entropy: dict[int, Tensor] = field(default_factory=dict)
    _surprisal: Tensor | None = None
    _representation_change: Tensor | None = None
    _accumulated_attention: Tensor | None = None
    _query_moments: list[Moments] | None = None
    rotation: Rotation | None = None
    _model: PreTrainedModel | None = None
    future: dict[str, Tensor] = field(default_factory=dict, repr=False)
    most_observed: int | None = None
    span: int | None = None
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Context tokens."""
        return int(self.tokens.shape[-1])

    @property
    def seen(self) -> int:
        """Tokens that went through the model: n, unless some are held no more."""
        return self.n

    @property
    def positions(self) -> Tensor:
        """Where in the sequence each token stands, (n,), or (L, H, n) where heads hold different ones."""
        return torch.arange(self.n, device=self.tokens.device)

    def observed(self, window: int) -> int:
        """How many of the last queries a rule with this window observes: fewer where little is held."""
        return min(window, self.n, self.n if self.most_observed is None else self.most_observed)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, kv_heads, tokens): what scores must broadcast to."""
        return len(self.layers), self.kv_heads, self.n

    @property
    def candidates(self) -> Tensor:
        """(n,) bool: the tokens that rules choose among."""
        mask = torch.zeros(self.n, dtype=torch.bool, device=self.tokens.device)
        mask[self.first : self.last] = True
        return mask

    def _layer(self, index: int) -> SelectiveLayer:
        layer = self.cache.layers[self.layers[index]]
        assert isinstance(layer, SelectiveLayer)
        return layer

    def keys(self, index: int) -> Tensor:
        """Keys of the index-th ablatable layer after the rotary embedding, (kv_heads, n, d)."""
        keys = self._layer(index).keys
        assert keys is not None
        return keys[0].to(self.tokens.device)

    def values(self, index: int) -> Tensor:
        """Values of the index-th ablatable layer, (kv_heads, n, d_v)."""
        values = self._layer(index).values
        assert values is not None
        return values[0].to(self.tokens.device)

    @property
    def entropy(self) -> Tensor:
        """Top-256 predictive entropy of each token, (n,) in nats (arXiv:2606.26875)."""
        return self.entropy_of(DEFAULT_TOP_K)

    def entropy_of(self, top_k: int, alignment: str = "own") -> Tensor:
        """Predictive entropy (n,) in nats over the `top_k` largest logits; 0 for the whole vocabulary.

        Args:
            alignment: "own": of the distribution that predicted the token, how uncertain the model was about *it*; 0
                for the first token, which nothing predicts. "next": of the distribution that the model gives at the
                token, how uncertain it is about what comes after.
        """
        recorded = self._entropy if alignment == "own" else self._next_entropy
        if top_k not in recorded:
            raise _missing("entropy", entropy_need(top_k, alignment))
        return recorded[top_k]

    @property
    def surprisal(self) -> Tensor:
        """-log p_{i-1}(x_i) in nats, (n,); 0 for the first token, which nothing predicts."""
        if self._surprisal is None:
            raise _missing("surprisal", "surprisal")
        return self._surprisal

    @property
    def representation_change(self) -> Tensor:
        """D = 1 - cos(h^l, h^L) for the ablatable layers, (L, n); 0 for the model's last layer (arXiv:2606.26875)."""
        if self._representation_change is None:
            raise _missing("representation_change", "representation_change")
        return self._representation_change

    @property
    def accumulated_attention(self) -> Tensor:
        """Attention that each token received from all queries at or after it, mean over a group's heads, (L, H, n)."""
        if self._accumulated_attention is None:
            raise _missing("accumulated_attention", "accumulated_attention")
        return self._accumulated_attention

    @property
    def query_moments(self) -> list[Moments]:
        """Per ablatable layer, moments of the queries before the rotary embedding of tokens from the 5th on."""
        if self._query_moments is None:
            raise _missing("query_moments", "query_moments")
        return self._query_moments

    @property
    def model(self) -> PreTrainedModel:
        """The model, unmodified; a rule that runs it leaves it as it was."""
        if self._model is None:
            raise _missing("the model", "model")
        return self._model

    def gradients(self, zone: str, samples: int) -> Tensor:
        """Gradients of the continuation's zone by the gates of all entries, (samples, L, H, n): see `gradients.py`."""
        found = self.future.get(zone)
        if found is None or len(found) < samples:
            raise UsageError(
                f"gradients of the {zone} continuation are missing: rules that look ahead work where the continuation "
                f'is known (measure, screen) and declare needs={{"gradients_{zone}:{samples}"}}'
            )
        return found[:samples]

    def limited(self, needs: Needs) -> Self:
        """The same trace with the signals of `needs` alone: what a rule declared decides what it reads.

        Otherwise a rule that forgot a signal would work beside rules that read it, or with a trace kept from them, and
        fail alone. What is remembered (`memo`) stays shared.
        """
        return dataclasses.replace(
            self,
            window_queries=[q[:, -needs.window :] for q in self.window_queries] if needs.window else [],
            _entropy={top_k: entropy for top_k, entropy in self._entropy.items() if top_k in needs.entropy},
            _next_entropy={top_k: e for top_k, e in self._next_entropy.items() if top_k in needs.next_entropy},
            _surprisal=self._surprisal if needs.surprisal else None,
            _representation_change=self._representation_change if needs.representation_change else None,
            _accumulated_attention=self._accumulated_attention if needs.accumulated_attention else None,
            _query_moments=self._query_moments if needs.query_moments else None,
            _model=self._model if needs.model else None,
        )

    def versions(self) -> tuple[int, ...]:
        """How often each recorded tensor was changed in place: a rule must leave the trace as it is."""
        layers = range(len(self.layers))
        recorded: list[Tensor | None] = [t for i in layers for t in (self.keys(i), self.values(i))]
        recorded += [*self.window_queries, *self._entropy.values(), *self._next_entropy.values(), self.tokens]
        recorded += self.future.values()
        recorded += [self._surprisal, self._representation_change, self._accumulated_attention]
        return tuple(t._version for t in recorded if t is not None and not t.is_inference())

    def queries(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """The last `window` queries of the index-th ablatable layer, (query_heads, window, d)."""
        if not self.window_queries or self.window_queries[index].shape[1] < min(window, self.n):
            raise _missing("window queries", f"window:{window}")
        if self.position_biased:
            raise UsageError("this model adds a position bias to its attention, which attention rules cannot read")
        return self.window_queries[index][:, -window:].to(self.tokens.device)

    def attention(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """Causal attention of the last `window` queries over all n keys, (kv_heads, group, window, n)."""
        return probabilities(self.queries(index, window), self.keys(index), self.geometry[index])

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        """`compute()`, once per key: what several rules share (the window's attention, say) is computed once."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def _missing(what: str, need: str) -> UsageError:
    return UsageError(f'{what} was not recorded; a rule that reads it declares it: needs={{"{need}"}}')

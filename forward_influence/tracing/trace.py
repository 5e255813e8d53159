"""What one pass over a context recorded, and the signals that rules read from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.instrument.attention import Geometry, probabilities
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.rotary import Rotation
from forward_influence.instrument.selective_layer import SelectiveLayer
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.signals import Signal, parsed
from forward_influence.tracing.signals.entropy import DEFAULT_TOP_K, entropy_need
from forward_influence.tracing.signals.query_moments import Moments
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.utils.display import Displayed


@dataclass
class Trace(Displayed):
    """One pass over a context of n tokens. L are the full-attention layers, H the kv heads.

    Attributes:
        tokens: (n,) token ids.
        layers: indices in the model of the L layers that can be ablated.
        kv_heads, query_heads: heads per layer.
        first, last: candidates are the tokens first <= i < last; others are protected.
        cache: holds the context's keys and values.
        last_hidden: (hidden,) the model's last hidden state at the last context token.
        geometry: per layer, what its attention logits depend on beside queries and keys.
        rotation: the model's rotary embedding, where query moments were recorded.
        most_observed: a bound on the observation windows of rules, for small caches.
        needs: the signals that it was recorded with.
        recorded: signal by key (`Signal.key`): its value.
        limits: the needs of who reads it, where that is not everything recorded.
        span: context + continuation tokens that it was recorded for: a window at least that long counted as none.
        future: zone of the continuation -> gradients (samples, L, H, n), where a rule that looks ahead is measured.
        latent: layer -> the module that makes keys and values of the one latent that it holds per token; else empty.
    """

    tokens: Tensor
    layers: tuple[int, ...]
    query_heads: int
    kv_heads: int
    first: int
    last: int
    cache: SelectiveCache
    last_hidden: Tensor | None = None
    geometry: list[Geometry] = field(default_factory=list)
    position_biased: bool = False
    rotation: Rotation | None = None
    needs: Needs = field(default_factory=Needs)
    recorded: dict[str, Any] = field(default_factory=dict, repr=False)
    limits: tuple[Needs, ...] = ()
    future: dict[str, Tensor] = field(default_factory=dict, repr=False)
    most_observed: int | None = None
    span: int | None = None
    latent: Mapping[int, Any] = field(default_factory=dict, repr=False)
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        recorded = ", ".join(self.recorded) or "keys and values"
        heads = f"{len(self.layers)} layers of {self.kv_heads} kv heads"
        return f"Trace({self.n} tokens, {heads}, candidates {self.first} to {self.last - 1}; {recorded})"

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
        """Keys of the index-th ablatable layer after the rotary embedding, (kv_heads, n, d).

        Where a layer holds one latent per token, the keys made of it side by side: (1, n, query_heads x d).
        """
        return self._joined(self.attended(index)[0])

    def values(self, index: int) -> Tensor:
        """Values of the index-th ablatable layer, (kv_heads, n, d_v); side by side like keys."""
        return self._joined(self.attended(index)[1])

    def attended(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values with which the index-th ablatable layer attends, (kv_heads, n, d) and (kv_heads, n, d_v).

        Where it holds one latent per token they are made of it for all query heads: (query_heads, n, d).
        """
        layer = self._layer(index)
        assert layer.keys is not None and layer.values is not None
        keys, values = layer.keys, layer.values
        if self.latent:
            with torch.no_grad():
                keys, values = self.latent[self.layers[index]].expand_kv(keys, values)
        return keys[0].to(self.tokens.device), values[0].to(self.tokens.device)

    def _joined(self, heads: Tensor) -> Tensor:
        """One vector per entry: of a latent, the (query_heads, n, d) made of it as (1, n, query_heads x d)."""
        return heads.transpose(0, 1).flatten(1)[None] if self.latent else heads

    def by_entry(self, attention: Tensor) -> Tensor:
        """Attention, or its logits, (heads attended with, group, q, k), as (kv_heads, group, q, k).

        The heads whose keys are made of one latent are the group of its entry.
        """
        return attention.transpose(0, 1) if self.latent else attention

    def signal(self, need: str) -> Any:
        """A signal's value, by the need that declares it: "surprisal", "entropy:256".

        Raises:
            UsageError: it was not recorded, or the rule that reads it did not declare it.
        """
        asked, number = parsed(need)
        declared = all(asked.serves(number, needs.numbers(asked.name), self.n) for needs in (self.needs, *self.limits))
        value = self._recorded(asked.key(number)) if declared else None
        if value is None:
            raise _missing(asked, number)
        return value

    def _recorded(self, key: str) -> Any:
        """A signal's value, or None."""
        return self.recorded.get(key)

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
        return self.signal(entropy_need(top_k, alignment))  # type: ignore[no-any-return]

    @property
    def surprisal(self) -> Tensor:
        """-log p_{i-1}(x_i) in nats, (n,); 0 for the first token, which nothing predicts."""
        return self.signal("surprisal")  # type: ignore[no-any-return]

    @property
    def representation_change(self) -> Tensor:
        """D = 1 - cos(h^l, h^L) for the ablatable layers, (L, n); 0 for the model's last layer (arXiv:2606.26875)."""
        return self.signal("representation_change")  # type: ignore[no-any-return]

    @property
    def accumulated_attention(self) -> Tensor:
        """Attention that each token received from all queries at or after it, mean over a group's heads, (L, H, n)."""
        return self.signal("accumulated_attention")  # type: ignore[no-any-return]

    @property
    def query_moments(self) -> list[Moments]:
        """Per ablatable layer, moments of the queries before the rotary embedding of tokens from the 5th on."""
        return self.signal("query_moments")  # type: ignore[no-any-return]

    @property
    def model(self) -> PreTrainedModel:
        """The model, unmodified; a rule that runs it leaves it as it was."""
        return self.signal("model")

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
        return dataclasses.replace(self, limits=(*self.limits, needs))

    def versions(self) -> tuple[int, ...]:
        """How often each recorded tensor was changed in place: a rule must leave the trace as it is."""
        held = [self._layer(i) for i in range(len(self.layers))]
        tensors = [t for layer in held for t in (layer.keys, layer.values) if t is not None]
        tensors += [self.tokens, *self.future.values()]
        for signal, number in self.needs.asked:
            value = self._recorded(signal.key(number))
            tensors += signal.packed(value).values() if value is not None else ()
        return tuple(t._version for t in tensors if not t.is_inference())

    def queries(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """The last `window` queries of the index-th ablatable layer, (query_heads, window, d)."""
        found: list[Tensor] = self.signal(f"window:{window}")
        if self.position_biased:
            raise UsageError("this model adds a position bias to its attention, which attention rules cannot read")
        return found[index][:, -window:].to(self.tokens.device)

    def attention(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """Causal attention of the last `window` queries over all n keys, (kv_heads, group, window, n)."""
        keys = self.attended(index)[0]
        return self.by_entry(probabilities(self.queries(index, window), keys, self.geometry[index]))

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        """`compute()`, once per key: what several rules share (the window's attention, say) is computed once."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


def _missing(signal: Signal, number: int) -> UsageError:
    need = signal.need(number)
    return UsageError(f'{signal.label} was not recorded; a rule that reads it declares it: needs={{"{need}"}}')

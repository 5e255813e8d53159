"""Running continuation tokens again over what the full run computed: each query sees exactly the keys it is meant to.

The keys of a query are [what is held of the context | the full run's own continuation | the running tokens]. Which of
them it sees is a matter of distances alone, so that any sorted set of positions can be run, each by itself (the direct
effect), or a chunk of neighbours that see one another (gradients, chunk by chunk).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicSlidingWindowLayer

from forward_influence.errors import UsageError
from forward_influence.instrument.cache import SelectiveCache, text_config
from forward_influence.instrument.compat import query_count
from forward_influence.instrument.layer_kinds import REPLAYABLE_KINDS
from forward_influence.instrument.selective_layer import SelectiveLayer

#: Per model layer, keys and values (1, kv_heads, m, d) of a continuation.
Entries = Sequence[tuple[Tensor, Tensor]]


@dataclass
class Queries:
    """The tokens that are running, shared by all layers of a pass.

    Attributes:
        n: context tokens.
        distances: (q,) int64, ascending: continuation position - n of each.
        together: whether running tokens see earlier running ones; if not, each sees the full run's tokens instead.
    """

    n: int
    distances: Tensor
    together: bool = False
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict, repr=False)

    @property
    def stop(self) -> int:
        """How many of the full run's continuation tokens the running ones can see."""
        return int(self.distances[0 if self.together else -1])

    @property
    def positions(self) -> Tensor:
        """(q,) the running tokens' positions in the sequence."""
        return self.n + self.distances

    def visible(self, held: int, window: int | None) -> Tensor:
        """(q, held + stop + q) bool, True where a query sees a key.

        Args:
            held: entries of the context; with a window, the last ones.
            window: of the layer, the query's own position included; None for full attention.
        """
        if (held, window) not in self._masks:
            t = self.distances[:, None]
            earlier = torch.arange(self.stop, device=t.device)
            own = torch.eye(len(t), dtype=torch.bool, device=t.device)
            parts = [
                torch.ones(len(t), held, dtype=torch.bool, device=t.device),
                earlier < t,
                own if not self.together else self.distances <= t,
            ]
            mask = torch.cat(parts, dim=1)
            if window is not None:
                keys = torch.cat([torch.arange(-held, 0, device=t.device), earlier, self.distances])
                mask &= keys > t - window
            self._masks[held, window] = mask
        return self._masks[held, window]


class ReplayLayer(SelectiveLayer):
    """One layer of a pass over running tokens; nothing that runs stays.

    Attributes:
        context: keys and values (1, kv_heads, held, d) of the context.
        later: keys and values (1, kv_heads, m, d) of the full run's continuation.
        queries: what is running.
        window: of a sliding layer.
        own, length: keys and values of the running tokens, and how many keys there were, after `update`.
    """

    def __init__(
        self,
        context: tuple[Tensor, Tensor],
        later: tuple[Tensor, Tensor],
        queries: Queries,
        holes: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.context, self.later, self.queries = context, later, queries
        self.holes, self.window = holes, window
        self.is_sliding = window is not None
        self.own: tuple[Tensor, Tensor] | None = None
        self.length = 0
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[context | the full run's continuation | these], (1, kv_heads, held + stop + q, d) each."""
        self.own = key_states, value_states
        earlier = self.earlier()
        keys, values = (torch.cat(p, dim=2) for p in zip(self.context, earlier, self.own, strict=True))
        self.length = keys.shape[2]
        return keys, values  # not kept: all layers' together would be another cache

    def earlier(self) -> tuple[Tensor, Tensor]:
        """The full run's continuation as far as the running tokens may see it."""
        stop = self.queries.stop
        return self.later[0][:, :, :stop], self.later[1][:, :, :stop]

    def own_mask(self, query_length: int) -> tuple[bool, Tensor | None]:
        """Always its own: bool (1, 1 | kv_heads, q, held + stop + q)."""
        held = self.context[0].shape[2]
        visible = self.queries.visible(held, self.window)
        if self.holes is None:
            return True, visible[None, None]
        visible = visible.repeat(self.holes.shape[0], 1, 1)
        visible[:, :, :held] &= ~self.holes[:, None]
        return True, visible[None]

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Of the running tokens alone: the model's mask is not used, so it is kept small."""
        return query_count(query_length), self.get_seq_length()

    def get_seq_length(self) -> int:
        """The first running token's position."""
        return self.queries.n + int(self.queries.distances[0])


class NotingLayer(DynamicSlidingWindowLayer):
    """A sliding layer that goes on as it was and notes the keys and values that pass, which it would forget."""

    noted: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, layer: CacheLayerMixin) -> NotingLayer:
        """A layer in the state of `layer`, whose own state stays."""
        if not isinstance(layer, DynamicSlidingWindowLayer):
            raise UsageError(f"layers of kind {type(layer).__name__} cannot be replayed; only total effects are there")
        other = cls.__new__(cls)
        other.__dict__.update(layer.__dict__)
        other.noted = []
        return other

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the original, noting."""
        self.noted.append((key_states, value_states))
        return super().update(key_states, value_states, *args, **kwargs)


def require_replayable(kinds: Collection[str]) -> None:
    """Refuse what runs tokens again over entries that were kept, where more than entries decides what they give.

    Args:
        kinds: what transformers calls the layers of the model's cache.

    Raises:
        UsageError: layers carry states, read another layer's entries, or attend to what an indexer picks.
    """
    others = sorted(set(kinds) - set(REPLAYABLE_KINDS))
    if others:
        raise UsageError(
            f"this model's cache has layers of kind {', '.join(others)}, through which no gradients go: rules that "
            "look ahead (oracle, gradients) and `screen` are not available for it"
        )


def noting(cache: SelectiveCache, config: PreTrainedConfig) -> SelectiveCache:
    """A cache from which `continuation_entries` can be had after a continuation went through.

    Raises:
        UsageError: the model attends in chunks, where what a query sees is not a matter of distance, or its layers
            hold more than keys and values.
    """
    require_replayable({type(layer).__name__ for layer in DynamicCache(config=text_config(config)).layers})
    if "chunked_attention" in (getattr(text_config(config), "layer_types", None) or ()):
        raise UsageError("this model attends in chunks; direct effects and gradients are not available for it")
    layers = [layer if isinstance(layer, SelectiveLayer) else NotingLayer.of(layer) for layer in cache.layers]
    return SelectiveCache.of_layers(layers)


def continuation_entries(cache: SelectiveCache, m: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (1, kv_heads, m, d) per layer of the last m tokens that went through a `noting` cache."""
    entries = []
    for layer in cache.layers:
        if isinstance(layer, NotingLayer):
            keys, values = (torch.cat(parts, dim=2) for parts in zip(*layer.noted, strict=True))
        else:
            assert layer.keys is not None and layer.values is not None
            keys, values = layer.keys, layer.values
        # copies: a view would keep the context's part of the store, too
        entries.append((keys[:, :, -m:].clone(), values[:, :, -m:].clone()))
    return entries


def replay_cache(branch: SelectiveCache, later: Entries, queries: Queries) -> SelectiveCache:
    """A cache for running `queries` over what `branch` holds of the context and the full run's continuation."""
    layers = []
    for layer, entries in zip(branch.layers, later, strict=True):
        assert layer.keys is not None and layer.values is not None
        full = isinstance(layer, SelectiveLayer)
        holes = layer.holes if isinstance(layer, SelectiveLayer) else None
        window = None if full else int(layer.sliding_window)  # type: ignore[attr-defined]
        layers.append(ReplayLayer((layer.keys, layer.values), entries, queries, holes, window))
    return SelectiveCache.of_layers(layers)

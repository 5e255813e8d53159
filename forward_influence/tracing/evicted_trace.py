"""A compressed cache as a trace, so that every rule scores it unchanged.

A `HeldTrace` covers layers and heads that hold equally many tokens, a `Part` of the cache; what it says about tokens is
gathered for each layer and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forward_influence.errors import ForwardInfluenceError
from forward_influence.instrument.attention import probabilities
from forward_influence.tracing.part import Part
from forward_influence.tracing.signals import Recording
from forward_influence.tracing.signals.window import DEFAULT_WINDOW
from forward_influence.tracing.trace import Trace


@dataclass(kw_only=True)
class HeldTrace(Trace):
    """What a part of a cache holds. Signals per token are (layers, kv_heads, n) once tokens were evicted.

    Attributes:
        part: which layers, heads and tokens.
        recordings: signal by key, as far as the sequence got; values are made when a rule reads them.
    """

    part: Part
    recordings: Mapping[str, Recording] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Tokens that each layer and head holds."""
        return self.part.n

    @property
    def seen(self) -> int:
        """Tokens that went through the model."""
        return self.part.seen

    @property
    def positions(self) -> Tensor:
        """(layers, kv_heads, n) int64."""
        return self.part.positions

    def keys(self, index: int) -> Tensor:
        """Keys of the index-th layer and the group's heads, (kv_heads, n, d)."""
        keys = self._layer(index).keys
        assert keys is not None
        return self._of_heads(keys[0])

    def values(self, index: int) -> Tensor:
        """Values, (kv_heads, n, d_v)."""
        values = self._layer(index).values
        assert values is not None
        return self._of_heads(values[0])

    def _of_heads(self, stored: Tensor) -> Tensor:
        """The last n entries of the group's heads: what only pads stands in front."""
        group = self.part.group
        if group.n < self.n:
            raise ForwardInfluenceError("this trace is for counting; keys and values come from one group at a time")
        mine = stored if len(group.heads) == stored.shape[0] else stored[list(group.heads)]
        return mine[:, stored.shape[1] - self.n :]

    def attention(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """Attention of the last `window` queries over what is held, (kv_heads, group, window, n).

        Each query sees what stands at or before it, whether or not its own token is still held.
        """
        queries = self.queries(index, window)
        standing = torch.arange(self.seen - queries.shape[1], self.seen, device=queries.device)
        visible = self.positions[index][:, None, None, :] <= standing[None, None, :, None]
        return probabilities(queries, self.keys(index), self.geometry[index], visible)

    def _recorded(self, key: str) -> Any:
        if key not in self.recordings:
            return None
        return self.memo(("signal", key), lambda: self.recordings[key].value(self.part))

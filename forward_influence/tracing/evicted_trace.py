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

    def attended(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values with which the index-th layer attends, of the group's heads; see `Trace.attended`."""
        keys, values = super().attended(index)
        return self._of_heads(keys), self._of_heads(values)

    def _of_heads(self, stored: Tensor) -> Tensor:
        """The last n entries of the group's heads: what only pads stands in front."""
        group = self.part.group
        if group.n < self.n:
            raise ForwardInfluenceError("this trace is for counting; keys and values come from one group at a time")
        whole = self.latent or len(group.heads) == stored.shape[0]  # a latent's heads are all of one entry
        mine = stored if whole else stored[list(group.heads)]
        return mine[:, stored.shape[1] - self.n :]

    def attention(self, index: int, window: int = DEFAULT_WINDOW) -> Tensor:
        """Attention of the last `window` queries over what is held, (kv_heads, group, window, n).

        Each query sees what stands at or before it, whether or not its own token is still held.
        """
        queries = self.queries(index, window)
        standing = torch.arange(self.seen - queries.shape[1], self.seen, device=queries.device)
        visible = self.positions[index][:, None, None, :] <= standing[None, None, :, None]
        keys = self.attended(index)[0]
        return self.by_entry(probabilities(queries, keys, self.geometry[index], visible))

    def _recorded(self, key: str) -> Any:
        if key not in self.recordings:
            return None
        return self.memo(("signal", key), lambda: self.recordings[key].value(self.part))

"""An effect: how the continuation runs when entries of the context's cache are removed, and what follows from that.

Requests, the command line and rows name effects; whatever else depends on one asks it. The controls of a measurement
run as the effect does: its noise floor is the context's whole cache stored in another order, its positive control the
removal of all candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from forward_influence.instrument.cache import SelectiveCache

if TYPE_CHECKING:
    from forward_influence.influence.full_run import Continuation
    from forward_influence.models.loading import Model
    from forward_influence.models.sizes import Sizes
    from forward_influence.selectors.selection import Selection
    from forward_influence.tracing.trace import Trace

#: Makes the cache that a continuation runs on, with room for the given number of tokens.
Branch = Callable[[int], SelectiveCache]


class Effect(ABC):
    """One way for a continuation to feel that entries are gone.

    Attributes:
        name: as typed, and as rows have it.
        replays: whether its passes read the keys and values of the continuation's full run, which are kept for it.
        each_by_itself: whether positions run each by itself: where some are sampled only they run, and a state that is
            not finite is that of its own position.
    """

    name: ClassVar[str]
    replays: ClassVar[bool] = False
    each_by_itself: ClassVar[bool] = False

    @abstractmethod
    def hidden(self, continuation: Continuation, branch: Branch, length: int, positions: Tensor | None) -> Tensor:
        """Last hidden states of a continuation over a changed cache, (p, hidden).

        Args:
            length: how many tokens of the continuation are covered.
            positions: distances (p,) that are wanted, ascending; None for all `length`.
        """

    def runs(self, length: int, measured: int) -> int:
        """How many tokens go through the model to measure so many positions of a continuation."""
        return measured if self.each_by_itself else length

    def kept_bytes(self, sizes: Sizes, continuation: int) -> int:
        """Memory of what is kept of the full run meanwhile."""
        return sizes.cache_bytes(continuation) if self.replays else 0

    def extra_keys(self, chunk: int) -> int:
        """Keys that a pass of `chunk` tokens sees beside those of the context and the continuation."""
        return chunk if self.replays else 0

    def verified(self, count: int) -> Tensor:
        """Which of `count` measured positions are computed again with `--verify`: indices, ascending."""
        return torch.arange(count)

    @abstractmethod
    def masked_kl(
        self,
        model: Model,
        tokens: Tensor,
        trace: Trace,
        removed: Selection,
        distances: Tensor,
        fills: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """KL (p,) at distances (p,) by another road: ablation by masking, in passes over everything.

        Args:
            tokens: (context + continuation,) ids.
            removed: what was ablated.
            fills: values (kv_heads, d_v) per layer that ablated entries got; None: they left the cache.
        """

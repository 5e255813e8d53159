"""LazyEviction (arXiv:2506.15969): entries that came back before, and may come back again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.signals.attended_steps import MILLIONTH
from forward_influence.tracing.trace import Trace


@selector("lazy-eviction", source="LazyEviction, arXiv:2506.15969")
@dataclass(frozen=True, kw_only=True)
class LazyEviction(Selector):
    """2 s(-(t - T) / M) + 2 s(-1 / M), s the logistic function: how late an entry is, beside its longest wait.

    t is the last step, T the last one at which attention of a query head of the group was at least `alpha`, M the
    longest gap between two such steps. An entry that never came back (M = 0) scores 0, so that ties decide among those;
    the run says how many. It is made for decoding, where it observes for `every` steps before it evicts; of a context,
    tokens are the steps. The paper's formula is used; the authors' code has s(-1 - (t - T) / M) and s(1 - M) for the
    two terms, and the latter falls with M where the paper's rises.

    Attributes:
        alpha: attention from which on an entry counts as attended to, in whole millionths.
        window: last tokens, which are always kept.
    """

    alpha: float = 1e-4
    window: int = 64

    def validate(self) -> None:
        """A threshold in millionths, a window that is no negative number."""
        if not MILLIONTH <= self.alpha <= 1 or abs(self.alpha / MILLIONTH - self._millionths) > 1e-6:
            raise UsageError(f"{self.name}: alpha={self.alpha} lies in 0.000001 to 1, in whole millionths")
        if self.window < 0:
            raise UsageError(f"{self.name}: window={self.window} is no number of tokens; give 0 or more")

    @property
    def _millionths(self) -> int:
        return round(self.alpha / MILLIONTH)

    @property
    def needs(self) -> frozenset[str]:
        """When entries were attended to."""
        return frozenset({f"attended_steps:{self._millionths}"})

    @property
    def observation_window(self) -> int:
        """The last tokens."""
        return self.window

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens), 0 to 2."""
        steps = trace.signal(f"attended_steps:{self._millionths}")
        gap = steps.longest.double()
        late = (trace.seen - 1 - steps.last).double()
        came_back = gap > 0
        gap = gap.masked_fill(~came_back, 1)
        return torch.where(came_back, 2 * torch.sigmoid(-late / gap) + 2 * torch.sigmoid(-1 / gap), 0)

"""PyramidKV: SnapKV's scores with budgets that fall with depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.budgets import apportion
from forward_influence.selectors.registry import selector
from forward_influence.selectors.selection import Candidates
from forward_influence.selectors.snapkv import Attention
from forward_influence.tracing.trace import Trace


@selector("pyramid", source="PyramidKV, arXiv:2406.02069")
@dataclass(frozen=True, kw_only=True)
class Pyramid(Attention):
    """`attention` with budgets that fall linearly from the first layer to the last, their sum exact.

    With C tokens held per layer, protected ones included: lo = C/beta, hi = 2C - lo, hi at most n - window. Where not
    n >= hi >= lo >= window, every layer holds C, and the rule's remarks say so. In drop mode the same sets are removed.

    Attributes:
        beta: how steep: the last layer holds C/beta.
    """

    beta: float = 20.0
    example = "pyramid:window=8"

    def validate(self) -> None:
        """As `attention`, and beta at least 1."""
        super().validate()
        if not self.beta >= 1:
            raise UsageError(f"{self.name}: beta={self.beta} is below 1, which would turn the pyramid over")

    @property
    def own_budgets(self) -> bool:
        """Always."""
        return True

    def slope(self, number: int, candidates: Candidates) -> tuple[float, float] | None:
        """Tokens that the first and the last layer hold, protected ones included; None where the fallback holds."""
        n, held = candidates.n, number + candidates.protected
        low = held / self.beta
        high = 2 * held - low
        if high >= n - self.window:
            high = n - self.window
            low = 2 * held - high
        return (high, low) if n >= high >= low >= self.window else None

    def counts(self, trace: Trace, scores: Tensor, number: int) -> int | Tensor:
        """(layers, 1)."""
        candidates, layers = Candidates(trace.n, trace.first, trace.last), len(trace.layers)
        slope = self.slope(number, candidates)
        if slope is None or layers == 1:
            return number
        high, low = slope
        wanted = [high - i * (high - low) / (layers - 1) - candidates.protected for i in range(layers)]
        shares = [round(w) for w in wanted]
        if sum(shares) != number * layers or min(shares) < 1 or max(shares) > candidates.count:
            shares = apportion([max(0.0, w) for w in wanted], number * layers, 1, candidates.count)
        return torch.tensor(shares, device=scores.device)[:, None]

    def remarks(self, number: int, candidates: Candidates) -> tuple[str, ...]:
        """That all layers hold the same, or that the last ones' share is below the protected tokens, where it is so."""
        held, slope = number + candidates.protected, self.slope(number, candidates)
        if slope is None:
            return (
                f"{self.spec}: {held} of {candidates.n} tokens are too few or too many for a pyramid on a window of "
                f"{self.window}, so every layer holds {held}, {candidates.protected} protected and {number} chosen "
                "(which drop mode removes), as in `attention`; use a smaller window, pyramid:window=8",
            )
        if slope[1] < candidates.protected + 0.5:
            return (
                f"{self.spec}: the last layer's share of {slope[1]:.0f} tokens is no more than the "
                f"{candidates.protected} protected ones, so layers like it choose 1 each and the others so many fewer; "
                "protect fewer",
            )
        return ()

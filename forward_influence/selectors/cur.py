"""CurDKV (arXiv:2509.15038): norms of keys and values as leverage within a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.selectors.base import Selector
from forward_influence.selectors.registry import selector
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32

KINDS = ("product", "mean", "key", "value")


@selector("cur", source="CurDKV, arXiv:2509.15038")
@dataclass(frozen=True, kw_only=True)
class Leverage(Selector):
    """||k||^2 times ||v||^2, each as its share of a window of neighbours; sinks first.

    As kvpress' CURPress without its random projection. Windows are counted in what is held. A window whose norms are
    all zero gives 0, where kvpress divides by 0.

    Attributes:
        window: neighbours within which norms are shared out; 0 for none, so that norms count as they are.
        kind: product of the two shares, their mean, that of the key or of the value alone.
        sinks: first tokens, which score 1.
    """

    window: int = 16
    kind: str = "product"
    sinks: int = 4

    def validate(self) -> None:
        """A known kind, nothing negative."""
        if self.kind not in KINDS:
            raise UsageError(f"{self.name}: kind={self.kind} is unknown; it is one of {', '.join(KINDS)}")
        if self.window < 0 or self.sinks < 0:
            raise UsageError(f"{self.name}: window and sinks are 0 or more")

    def scores(self, trace: Trace) -> Tensor:
        """(layers, kv_heads, tokens)."""
        rows = []
        for layer in range(len(trace.layers)):
            key, value = (self._shares(x) for x in (trace.keys(layer), trace.values(layer)))
            joined = {"product": key * value, "mean": (key + value) / 2, "key": key, "value": value}[self.kind]
            row = joined / joined.sum(-1, keepdim=True).clamp_min(torch.finfo(joined.dtype).tiny)
            row[:, : self.sinks] = 1
            rows.append(row)
        return torch.stack(rows)

    def _shares(self, states: Tensor) -> Tensor:
        """(kv_heads, tokens): squared norms as shares of their windows."""
        norms = at_least_float32(states).square().sum(-1)
        if not self.window:
            return norms
        n = norms.shape[-1]
        windows = F.pad(norms, (0, -n % self.window)).unflatten(-1, (-1, self.window))
        shares = windows / windows.sum(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
        return shares.flatten(-2)[:, :n]

"""What an ablation puts in the place of the entries that it takes from a cache: nothing, zeros, or a mean value.

Removing a set E changes a query's output twice: what E carried is gone, and the softmax hands E's share of attention
to the other entries. With attention a_j, the mass m_E = sum of a_j over E, and the output o_K = sum of a_j v_j over all
others:

    remove      o_K / (1 - m_E)          entries leave the cache, as under a compressor
    zero        o_K                      they keep their share of the attention and carry nothing
    mean        o_K + m_E mean(v)        they carry the mean value of their layer's and head's candidates

So `zero` measures lost content alone, and what `remove` does beyond it is redistributed attention. `zero` and `mean`
keep the entries' keys and replace their values: no mask, no other code path. (Zero and mean ablation are the usual
terms of ablation studies, for units of a network.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_influence.errors import UsageError, alternatives, did_you_mean
from forward_influence.tracing.trace import Trace
from forward_influence.utils.numerics import at_least_float32


@dataclass(frozen=True)
class AblationKind:
    """One thing to put in the place of entries that are ablated.

    Attributes:
        name: as typed, and as rows have it.
        fill: the values (kv_heads, n, d_v) of one layer's candidates -> the value of each head (kv_heads, d_v) that
            ablated entries get; None where entries leave the cache instead.
    """

    name: str
    fill: Callable[[Tensor], Tensor] | None = None

    @property
    def removes(self) -> bool:
        """Whether entries leave the cache."""
        return self.fill is None

    def fills(self, trace: Trace) -> list[Tensor] | None:
        """The values (kv_heads, d_v) that ablated entries get, per ablatable layer; None where they leave the cache.

        Raises:
            UsageError: the layers hold latents, of which keys and values are made together.
        """
        if self.fill is None:
            return None
        if trace.latent:
            raise UsageError(
                f"ablation {self.name!r} replaces values and leaves keys, which this model makes of one latent; "
                "measure ablation 'remove'"
            )
        candidates = slice(trace.first, trace.last)
        return [self.fill(trace.values(index)[:, candidates]) for index in range(len(trace.layers))]


def _zeros(values: Tensor) -> Tensor:
    return torch.zeros_like(values[:, 0])


def _mean(values: Tensor) -> Tensor:
    return at_least_float32(values).mean(1).to(values.dtype)


REMOVE = AblationKind("remove")
ZERO = AblationKind("zero", _zeros)
MEAN = AblationKind("mean", _mean)
#: By name; a kind of one's own is an entry more.
ABLATION_KINDS = {kind.name: kind for kind in (REMOVE, ZERO, MEAN)}


def ablation_kind(name: str) -> AblationKind:
    """The kind of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in ABLATION_KINDS:
        known = list(ABLATION_KINDS)
        raise UsageError(f"ablation {name!r} is unknown{did_you_mean(name, known)}; it is {alternatives(known)}")
    return ABLATION_KINDS[name]

"""KVzip+: KVzip's attention weighed by what an entry writes into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forward_influence.selectors.kvzip import KVzip
from forward_influence.selectors.registry import selector


@selector("kvzip-plus", source="KVzip+, kvpress; after KVzip, arXiv:2505.23416")
@dataclass(frozen=True, kw_only=True)
class KVzipPlus(KVzip):
    """KVzip's score with attention times ||W_O v|| / ||h||, h what attention reads at the repeated query.

    h is the input of the layer's attention, after its norm, as in kvpress' KVzipPress(kvzip_plus_normalization=True).
    It costs what KVzip costs.

    Attributes:
        piece, sinks, asked, spread: as of `kvzip`.
    """

    weighed: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """The model, once more, and its output projections."""
        return super().needs | {"output_projection"}

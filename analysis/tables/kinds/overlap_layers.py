"""What rules share of their budget, layer by layer."""

from __future__ import annotations

from forward_influence.analysis.tables.kinds.overlap import Overlap
from forward_influence.analysis.tables.registry import tabled


@tabled
class OverlapByLayer(Overlap):
    """A row per pair of rules and layer."""

    title = "Overlap layer by layer: what rules share of their budget"
    heading = "What rules share, layer by layer"
    note = "candidates only; means over documents, layer by layer"
    place = 80
    by_layer = True

"""Bins of distance: equal, log-spaced, fine; near, middle and far; measured spans. Documents may differ in length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forward_influence.errors import UsageError
from forward_influence.storage.run import Run
from forward_influence.utils.distances import BIN_WIDTH, MIDDLE, NEAR

#: How many bins a curve has at least.
FEWEST_BINS = 8
#: Log-spaced bins: how many, and how many positions the first holds.
LOG_BINS = 16
FIRST_LOG_BIN = 16
#: Fine bins: positions in each near the context, and the share of the distance that they grow with farther out.
FINEST = 4
FINE_SHARE = 0.08

Edges = np.ndarray
#: (continuation, stretch) -> edges; the stretch is what sampled positions are spread evenly over, 1 without sampling.
Binning = Callable[[int, int], Edges]


def bin_width(continuation: int) -> int:
    """The width of bins, in tokens, where none is asked for: the paper's 128, halved until there are 8 bins."""
    width = BIN_WIDTH
    while width > 1 and continuation < FEWEST_BINS * width:
        width //= 2
    return width


def bins(
    continuation: int, width: int | None = None, *, stretch: int = 1, log: bool = False, count: int | None = None
) -> Edges:
    """Edges of distance bins, int64 (B + 1,), strictly increasing from 0 to `continuation`.

    Args:
        continuation: m, in tokens.
        width: tokens per bin, by default `bin_width(continuation)`; the last bin takes what is left over.
        stretch: positions were sampled in every stretch of so many tokens; default and log-spaced bins hold whole
            stretches, for in narrower ones some documents would have no position.
        log: log-spaced bins after a first one of 16 positions, so that near and far weigh alike on a log axis.
        count: this many bins instead (equal or log-spaced; fewer where whole positions do not allow as many).

    Raises:
        UsageError: a width, count or continuation below 1.
    """
    if min(n for n in (continuation, width, count) if n is not None) < 1:
        raise UsageError(f"cannot bin {continuation} positions (width {width}, count {count}); all must be at least 1")
    width = width or max(bin_width(continuation), stretch)
    if log:
        wanted = LOG_BINS if count is None else count
        first = min(FIRST_LOG_BIN, continuation)
        inner = np.geomspace(first, continuation, wanted) if wanted > 1 else np.array([continuation])
        whole = np.round(inner / stretch) * stretch
        edges = np.concatenate([[0], whole[whole < continuation], [continuation]])
    elif count is not None:
        edges = np.round(np.linspace(0, continuation, count + 1))
    else:
        edges = np.append(np.arange(0, continuation, width), continuation)
    return np.unique(edges.astype(np.int64))


def fine_bins(continuation: int, stretch: int = 1) -> Edges:
    """Edges of the narrowest bins that single documents are averaged in: int64 (B + 1,), from 0 to `continuation`.

    They hold 4 positions, and 8% of the distance from where that is more; whole stretches where positions were sampled.

    Args:
        continuation: m, in tokens.
        stretch: as in `bins`.
    """
    edges = [0]
    while edges[-1] < continuation:
        width = max(FINEST, round(FINE_SHARE * edges[-1]))
        edges.append(edges[-1] + -(-width // stretch) * stretch)
    if len(edges) > 2 and continuation - edges[-2] < (edges[-1] - edges[-2]) / 2:
        del edges[-2]  # no sliver at the end
    edges[-1] = continuation
    return np.array(edges, dtype=np.int64)


def zone_edges(continuation: int, near: float = NEAR, middle: float = MIDDLE) -> Edges:
    """Edges of near, middle and far: int64 (4,). `near` and `middle` are where those zones end, as shares of m.

    Raises:
        UsageError: the shares do not rise between 0 and 1, or the continuation has fewer than 3 positions.
    """
    if not 0 < near < middle < 1:
        raise UsageError(f"near and middle must satisfy 0 < near < middle < 1, not {near:g} and {middle:g}")
    edges = np.array([0, int(continuation * near), int(continuation * middle), continuation], dtype=np.int64)
    edges[1] = max(edges[1], 1)
    edges[2] = max(edges[2], edges[1] + 1)
    if edges[3] <= edges[2]:
        raise UsageError(f"a continuation of {continuation} tokens has no near, middle and far; at least 3 are needed")
    return edges


@dataclass(frozen=True)
class Zones:
    """Near, middle and far as a binning; shares as in `zone_edges`."""

    near: float = NEAR
    middle: float = MIDDLE

    def __call__(self, continuation: int, stretch: int) -> Edges:
        """Edges int64 (4,)."""
        return zone_edges(continuation, self.near, self.middle)


@dataclass(frozen=True)
class Spans:
    """The measured spans of each document as a binning: bin k is the span number k."""

    def __call__(self, continuation: int, stretch: int) -> Edges:
        """Nothing but the whole: spans are a document's own."""
        return np.array([0, continuation], dtype=np.int64)


@dataclass(frozen=True)
class MeasuredSpans:
    """Names of a document's measured spans in order, neighbours of one name as one, and their edges (spans + 1,)."""

    names: tuple[str, ...]
    edges: Edges


def spans_of(entry: Mapping[str, Any]) -> MeasuredSpans:
    """The measured spans of a document of a manifest; none where it is not measured by spans."""
    names: list[str] = []
    edges = [0]
    for name, _, end in entry.get("measured", ()):
        if names and names[-1] == name:
            edges[-1] = end
        else:
            names.append(name)
            edges.append(end)
    return MeasuredSpans(tuple(names), np.array(edges, dtype=np.int64))


def edges_of(
    binning: Binning, own: int, stretch: int, longest: int | None, entry: Mapping[str, Any] | None
) -> tuple[Edges, Edges]:
    """A document's edges, and those that its bins are known by.

    Where documents differ in length all have the longest's bins, and those beyond a document's end are empty; but near,
    middle and far are each document's own, under the longest's edges, and spans are known by their number.
    """
    named = binning(longest or own, stretch)
    if isinstance(binning, Spans):
        edges = spans_of(entry or {}).edges
        return edges, np.arange(len(edges))
    return (binning(own, stretch), named) if isinstance(binning, Zones) else (named, named)


def longest_measured(runs: Sequence[Run]) -> int | None:
    """Measured positions of the longest document, where runs are measured by spans; None where all are as long."""
    counts = [
        max((end for _, _, end in d["measured"]), default=0) for run in runs for d in run.documents if "measured" in d
    ]
    return max(counts, default=None)

"""From run folders to curves: mean KL against distance, per document and rule, at any bin width.

The document is the unit. Draws of a random rule are averaged within a segment, segments within a document, and only
then are documents compared. Parts are read one at a time and binned while reading, so memory holds bins, not positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean
from forward_influence.influence.noise_floor import floor_of, taken_off
from forward_influence.storage.run import Run
from forward_influence.storage.shards import HELD
from forward_influence.utils.distances import BIN_WIDTH, MIDDLE, NEAR, ZONES
from forward_influence.utils.ranges import ranges

#: How many bins a curve has at least.
FEWEST_BINS = 8
#: Log-spaced bins: how many, and how many positions the first holds.
LOG_BINS = 16
FIRST_LOG_BIN = 16
#: Fine bins: positions in each near the context, and the share of the distance that they grow with farther out.
FINEST = 4
FINE_SHARE = 0.08
#: What tells one measured curve from another, within a document.
RULE = ["run", "selector", "budget", "mode", "effect", "layers"]

Edges = np.ndarray
#: (continuation, stretch) -> edges; the stretch is what sampled positions are spread evenly over, 1 without sampling.
Binning = Callable[[int, int], Edges]
_VALUES = ("kl", "nll_delta", "top1_changed")


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


def bin_means(values: np.ndarray, edges: Edges, distance: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean per bin, and how many positions made it: two float64 arrays (B,); NaN where a bin has no position.

    Args:
        values: (p,) at the positions `distance`; a NaN in it makes its bin NaN.
        edges: (B + 1,), as `bins` gives them; positions outside are left out.
        distance: (p,) increasing; 0..p-1 when None.
    """
    where = np.searchsorted(np.arange(len(values)) if distance is None else distance, edges)
    counts = np.diff(where).astype(float)
    # reduceat needs every start to be a valid index: one trailing zero allows empty bins at the end.
    totals = np.add.reduceat(np.append(np.asarray(values[: where[-1]], dtype=np.float64), 0.0), where[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, totals / counts, np.nan), counts


def _average(rows: Sequence[Mapping[str, Any]], edges: Edges) -> dict[str, np.ndarray]:
    """Bin means of one condition on one document: draws within segments first, then segments."""
    segments = []
    for _, draws in groupby(sorted(rows, key=lambda r: r["segment"]), key=lambda r: r["segment"]):
        made = [_binned(row, edges) for row in draws]
        segments.append({name: np.mean([one[name] for one in made], axis=0) for name in made[0]})
    return {name: np.mean([one[name] for one in segments], axis=0) for name in segments[0]}


def _binned(row: Mapping[str, Any], edges: Edges) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name in _VALUES:
        values, distance = row[name], row["distance"]
        if name == "nll_delta" and values is not None:
            known = ~np.isnan(values)  # the last position has no next token
            distance = np.flatnonzero(known) if distance is None else distance[known]
            values = values[known]
        if values is None:
            out[name] = np.full(len(edges) - 1, np.nan)
        else:
            out[name], counts = bin_means(values, edges, distance)
            if name == "kl":
                out["positions"] = counts
                out["moved"] = bin_means(values != 0, edges, distance)[0]
    return out


def _mean_of(values: Sequence[float | None]) -> float:
    """Over draws and segments; NaN where one has none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else float("nan")


def _selected(row: Mapping[str, Any]) -> float | None:
    """Entries that a rule selects per layer and head of those that are ablated, on average."""
    places = len(_ints(row["layers"])) * len(_ints(row["heads"]))
    return None if row["selected"] is None or not places else float(np.sum(row["selected"])) / places


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def _document_pieces(
    rows: Sequence[Mapping[str, Any]], binnings: Sequence[Binning], stretch: int, constant: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(which binning, columns) for each condition of one document."""
    conditions: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "condition":
            key = (row["selector"], row["budget"], row["mode"], row["effect"], _ints(row["layers"]))
            conditions.setdefault(key, []).append(row)
    every_layer = tuple(sorted({layer for key in conditions for layer in key[-1]}))
    for (selector, budget, mode, effect, ablated), found in conditions.items():
        parameters = found[0]["parameters"]
        known = json.loads(parameters or "{}")
        same = [json.loads(row["parameters"] or "{}").get("overlap") for row in found]
        held = {name: _mean_of([row[name] for row in found]) for name in HELD}
        held["selected"] = _mean_of([_selected(row) for row in found])
        for index, binning in enumerate(binnings):
            edges = binning(found[0]["continuation"], stretch)
            means, floor = _average(found, edges), floor_of(rows, effect, edges)
            kl = taken_off(means["kl"], floor, means.pop("moved"))
            yield (
                index,
                {
                    **constant,
                    "selector": selector,
                    "parameters": parameters,
                    "per": known.get("grain", known.get("per")) or "",
                    "compressor": bool(known.get("compressor")),
                    **held,
                    "budget": budget,
                    "mode": mode,
                    "effect": effect,
                    "layers": "all" if ablated == every_layer else ranges(ablated),
                    "bin": np.arange(len(edges) - 1),
                    "low": edges[:-1],
                    "high": edges[1:],
                    **means,
                    "kl": kl,
                    "measured": means["kl"],
                    "floor": floor,
                    "overlap": float("nan") if None in same else float(np.mean(same)),
                    "draws": len({r["seed"] for r in found}),
                    "context": found[0]["context"],
                    "continuation": found[0]["continuation"],
                },
            )


def labels(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of the folders around it as tell it from the others.

    Raises:
        UsageError: a folder is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, whole, strict=True):
        if whole.count(path) > 1:
            raise UsageError(f"{folder} is given twice; give each folder once")
    ends = [[Path(*path.parts[-count:]) for count in range(1, len(path.parts) + 1)] for path in whole]
    return [
        next(str(end) for end in mine if sum(end in theirs for theirs in ends) == 1 or end == mine[-1]) for mine in ends
    ]


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the names that `labels` gives them, in order; the column `run` of every frame holds these."""
    return dict(zip(labels([Path(run.where) for run in runs]), runs, strict=True))


def group_of(document: Mapping[str, Any], cluster: str | None) -> str:
    """The group of a document under a field of its manifest entry, such as "author"; its own name without a field.

    Raises:
        UsageError: it has no such field.
    """
    if cluster is None:
        return str(document["name"])
    if document.get(cluster) is None:
        known = [key for key, value in document.items() if isinstance(value, str)]
        raise UsageError(
            f"document {document['name']!r} has no {cluster!r} to cluster by{did_you_mean(cluster, known)}; "
            f"it has {', '.join(known)}"
        )
    return str(document[cluster])


def read(runs: Run | Sequence[Run], binnings: Sequence[Binning], cluster: str | None = None) -> list[pd.DataFrame]:
    """One tidy frame per binning, from one pass over the parts of all runs.

    Each frame has a row per (run, document, selector, budget, mode, effect, layers, bin): `kl`, `nll_delta` and
    `top1_changed` are means over the bin's positions [low, high), or over the sampled ones where positions were
    sampled: `positions` says how many, bins without any are left out. The KL is without the document's noise floor in
    that bin, which `floor` holds, in nats; `measured` is the mean with it. `distance` is the bin's middle, `overlap`
    what a position-matched control shares with its rule (0..1; NaN of other rules), `layers` "all" (or the ablated
    ones, where layers were ablated one by one), `per` the grain of what was selected ("" where nothing was chosen),
    `selected` how many entries per layer and kv head, `held`, `held_most`, `pinned` and `chosen` the same where entries
    are kept (`analysis.held`; NaN in drop mode), `compressor` whether the selector is one, `draws` the seeds averaged,
    `cluster` the document's group (or its own name).

    Args:
        cluster: a field of the manifest's documents, such as "author".

    Raises:
        ForwardInfluenceError: a run holds no measured document yet (with the command that continues it).
        UsageError: a document has no field `cluster`.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    pieces: list[list[dict[str, Any]]] = [[] for _ in binnings]
    for label, run in named(several).items():
        known = {d["name"]: d for d in run.documents}
        asked = run.configuration
        stretch = int(asked.get("bin_width") or BIN_WIDTH) if asked.get("positions_per_bin") else 1
        found = False
        for name, rows in groupby(run.rows(), key=lambda row: row["document"]):
            constant = {
                "run": label,
                "model": run.manifest.get("model", {}).get("spec", ""),
                "document": name,
                "cluster": group_of(known.get(name, {"name": name}), cluster),
            }
            for index, columns in _document_pieces(list(rows), binnings, stretch, constant):
                pieces[index].append(columns)
                found = True
        if not found:
            raise ForwardInfluenceError(nothing_measured(run))
    return [_assemble(part) for part in pieces]


def nothing_measured(run: Run) -> str:
    """The line that says what an empty run holds and how to go on with it."""
    command = run.manifest.get("command")
    how = f"continue it with: {command}" if command else "run its `measure` command again"
    return f"{run.where} holds no measured condition yet (0 of {len(run.documents)} documents); {how}"


def _assemble(pieces: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    sizes = [len(piece["bin"]) for piece in pieces]
    columns = {}
    for name in pieces[0]:
        if isinstance(pieces[0][name], np.ndarray):
            columns[name] = np.concatenate([piece[name] for piece in pieces])
        else:
            columns[name] = np.repeat(np.array([piece[name] for piece in pieces]), sizes)
    frame = pd.DataFrame(columns)
    frame.insert(frame.columns.get_loc("high") + 1, "distance", (frame["low"] + frame["high"] - 1) / 2)
    return frame[frame["positions"] > 0].reset_index(drop=True)


def load(
    runs: Run | Sequence[Run],
    width: int | None = None,
    *,
    log: bool = False,
    fine: bool = False,
    count: int | None = None,
    cluster: str | None = None,
) -> pd.DataFrame:
    """Tidy curves of one or several runs in bins of `width` tokens, log-spaced or fine; columns as in `read`."""
    if fine:
        return read(runs, [fine_bins], cluster)[0]
    return read(runs, [lambda m, stretch: bins(m, width, stretch=stretch, log=log, count=count)], cluster)[0]


def load_zones(
    runs: Run | Sequence[Run], *, near: float = NEAR, middle: float = MIDDLE, cluster: str | None = None
) -> pd.DataFrame:
    """As `load` with three bins, and their names in a column `zone`: near, middle, far."""
    return name_zones(read(runs, [lambda m, _: zone_edges(m, near, middle)], cluster)[0])


@dataclass(frozen=True)
class Curves:
    """Curves of runs in the binnings that analysis works with, each a frame as `read` gives it.

    Attributes:
        even: in bins of equal width (or those asked for), for pictures and ratios to controls.
        zones: in near, middle and far, with their names in a column `zone`.
        log: log-spaced, for fits.
        fine: in the narrowest bins, for crossovers.
    """

    even: pd.DataFrame
    zones: pd.DataFrame
    log: pd.DataFrame
    fine: pd.DataFrame

    def where(self, keep: Callable[[pd.DataFrame], pd.Series]) -> Curves:
        """The rows of each frame for which `keep` is true."""
        return Curves(*(frame[keep(frame)] for frame in (self.even, self.zones, self.log, self.fine)))


def read_curves(
    runs: Run | Sequence[Run],
    even: Binning = lambda m, stretch: bins(m, stretch=stretch),
    *,
    near: float = NEAR,
    middle: float = MIDDLE,
    cluster: str | None = None,
) -> Curves:
    """All that analysis needs of the curves of runs, from one pass over their parts.

    Args:
        even: the bins of `Curves.even`.
    """
    zones: Binning = lambda m, _: zone_edges(m, near, middle)  # noqa: E731
    log: Binning = lambda m, stretch: bins(m, stretch=stretch, log=True)  # noqa: E731
    frames = read(runs, [even, zones, log, fine_bins], cluster)
    return Curves(frames[0], name_zones(frames[1]), *frames[2:])


def name_zones(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame binned by `zone_edges`, with a column `zone`.

    Raises:
        UsageError: positions were sampled, and a document has none in one of the zones.
    """
    counts = frame.groupby([*RULE, "document"], sort=False)["bin"].nunique()
    if (counts < len(ZONES)).any():
        document = counts.index[counts.to_numpy() < len(ZONES)][0][-1]
        raise UsageError(
            f"near, middle or far holds none of the sampled positions of {document}; measure again with more "
            "`positions_per_bin` into a new `out`"
        )
    return frame.assign(zone=np.array(ZONES)[frame["bin"].to_numpy()])

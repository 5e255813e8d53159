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

from forward_influence.analysis.reading.binning import (
    Binning,
    Edges,
    Zones,
    bins,
    edges_of,
    fine_bins,
    longest_measured,
)
from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean
from forward_influence.influence.noise_floor import floor_of, taken_off
from forward_influence.storage.run import Run
from forward_influence.storage.shards import HELD
from forward_influence.utils.distances import BIN_WIDTH, MIDDLE, NEAR, ZONES
from forward_influence.utils.ranges import ranges

#: What tells one measured curve from another, within a document.
RULE = ["run", "selector", "budget", "mode", "effect", "layers"]

_VALUES = ("kl", "nll_delta", "top1_changed")


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
    rows: Sequence[Mapping[str, Any]],
    binnings: Sequence[Binning],
    stretch: int,
    constant: Mapping[str, Any],
    longest: int | None = None,
    entry: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(which binning, columns) for each condition of one document.

    Args:
        longest: the longest continuation, where those of the runs' documents differ.
        entry: of the document in the manifest.
    """
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
            edges, named = edges_of(binning, found[0]["continuation"], stretch, longest, entry)
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
                    "bin": np.arange(len(named) - 1),
                    "low": named[:-1],
                    "high": named[1:],
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
    longest = longest_measured(several)
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
            for index, columns in _document_pieces(list(rows), binnings, stretch, constant, longest, known.get(name)):
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
    return name_zones(read(runs, [Zones(near, middle)], cluster)[0])


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
    log: Binning = lambda m, stretch: bins(m, stretch=stretch, log=True)  # noqa: E731
    frames = read(runs, [even, Zones(near, middle), log, fine_bins], cluster)
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

"""The table that ends a measurement, and the lines of small print under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.formatting.held_words import entries
from forward_influence.analysis.measures.controls import floor_text, matched_text, spread
from forward_influence.analysis.measures.span_words import candidates_by_spans, zones_by_spans
from forward_influence.analysis.reading.binning import zone_edges
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.reading.held import held_notes, held_table
from forward_influence.analysis.reading.matrix import UNDER_FLOOR, Matrix, by_rule, matrix
from forward_influence.analysis.reading.pairing import (
    CONDITIONS,
    RANDOM,
    align,
    baseline_for,
    grains,
    is_called,
    is_control,
    pair_remarks,
    position_control_for,
)
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS, Method, estimate, paired
from forward_influence.analysis.statistics.stopping import method_for
from forward_influence.storage.run import Run
from forward_influence.storage.shards import HELD
from forward_influence.utils.distances import ZONES
from forward_influence.utils.ranges import ranges


def summarise(run: Run) -> pd.DataFrame:
    """One row per rule (selector, budget, mode, effect): mean KL near, middle and far, and what to set it against.

    Returns:
        Columns of `curves.RULE`, `per`, `documents`; `curves.HELD`, entries per layer and head where they are kept (NaN
        in drop mode); `near`, `middle`, `far`: geometric means over documents of each
        document's mean KL, nats; `far_near`: far / near within documents; `random_near`, `random_far`: as a multiple of
        random on the same documents; `matched_near`, `matched_far`: of the rule's position-matched control (NaN where
        there is none). Each of these with `_low` and `_high`, 95% bounds, NaN
        below 6 documents. `nll_near`, `nll_far`: mean NLL shift, nats; `same_near`, `same_far`: share of positions
        whose most likely token is the full cache's; means over documents. `flags`: what to know before reading a row.
        `.attrs["notes"]` holds `notes(run)`.

    Raises:
        ForwardInfluenceError: nothing is measured yet.
    """
    frame = load_zones(run)
    rows = []
    for key, group in by_rule(frame):
        same = frame[np.logical_and.reduce([frame[name] == key[name] for name in CONDITIONS])]
        rows.append(_row(key, group, same, method_for([run])))
    table = pd.DataFrame(rows)
    table.attrs["notes"] = notes(run, frame)
    return table


def _row(key: dict[str, str], group: pd.DataFrame, same: pd.DataFrame, method: Method) -> dict[str, Any]:
    curve = matrix(group)
    row: dict[str, Any] = {**key, "per": group["per"].iloc[0], "documents": len(curve.documents)}
    row |= {name: float(group[name].mean()) for name in HELD}
    remarks = []
    for index, zone in enumerate(ZONES):
        out = estimate(curve.kl[:, index], method=method)
        row |= spread(zone, out)
        if out.scale == "arithmetic":
            remarks.append(f"{zone}: {out.reason}")
    row |= _pair("far_near", curve.kl[:, 2], curve.kl[:, 0], method)
    zones = group.groupby("zone")[["nll_delta", "top1_changed"]].mean()
    for zone in ("near", "far"):
        row[f"nll_{zone}"], changed = zones.loc[zone]
        row[f"same_{zone}"] = 1 - changed
    remarks += flagged(curve)
    random = None if is_called(key["selector"], RANDOM) else baseline_for(same, key["selector"])
    for name, control in (("random", random), ("matched", position_control_for(same, key["selector"]))):
        both = None if control is None else align(group, same[same["selector"] == control])
        for index, zone in ((0, "near"), (2, "far")):
            if both is None:
                row |= dict.fromkeys((f"{name}_{zone}", f"{name}_{zone}_low", f"{name}_{zone}_high"), float("nan"))
            else:
                row |= _pair(f"{name}_{zone}", both[0].kl[:, index], both[1].kl[:, index], method)
        if control is not None:
            remarks += [text for text in pair_remarks(same, key["selector"], control) if text not in remarks]
    return {**row, "flags": "; ".join(remarks)}


def _pair(name: str, a: np.ndarray, b: np.ndarray, method: Method) -> dict[str, float]:
    out = paired(a, b, method=method, test=False)
    return {name: out.ratio, f"{name}_low": out.low, f"{name}_high": out.high}


def flagged(curve: Matrix) -> list[str]:
    """Which of near, middle and far lie under the noise-floor flag, in words."""
    below = [zone for zone, flag in zip(ZONES, curve.below_floor, strict=True) if flag]
    return [f"{' and '.join(below)} {UNDER_FLOOR}"] if below else []


def notes(run: Run, frame: pd.DataFrame | None = None) -> list[str]:
    """What was measured, in lines for under a table: zones, candidates, grain, noise floor, documents, intervals.

    Args:
        frame: `load_zones(run)`, if at hand.
    """
    frame = load_zones(run) if frame is None else frame
    c = run.configuration
    continuation = int(frame["continuation"].max())
    edges = zone_edges(continuation)
    ends = [f"{zone} {a} to {b - 1}" for zone, a, b in zip(ZONES, edges[:-1], edges[1:], strict=True)]
    by_spans = run.configuration.get("measure_on") is not None
    zones = zones_by_spans(run) if by_spans else f"{', '.join(ends)} tokens"
    lines = [
        f"mean KL in nats: geometric mean over documents; {zones}",
        *holding_lines([run]),
        *candidate_lines(run, frame),
        *held_notes(held_table(frame)),
        *grain_lines(frame),
        floor_text(frame),
        *control_lines(frame),
        documents_text(run, frame["document"].nunique()),
    ]
    if c.get("positions_per_bin"):
        lines.append(f"positions: {c['positions_per_bin']} sampled per bin of {c.get('bin_width') or 128}, not all")
    if c.get("layers") or c.get("heads"):
        where = [f"{name} {ranges(c[name])}" for name in ("layers", "heads") if c.get(name)]
        lines.append(f"ablated: {'; '.join(where)} only")
    if c.get("rerotate"):
        lines.append("re-rotated: what is kept moved up to the continuation")
    if frame["document"].nunique() < MINIMUM_DOCUMENTS:
        lines.append(f"intervals need {MINIMUM_DOCUMENTS} documents; there are {frame['document'].nunique()}")
    return lines


def holding_lines(runs: Sequence[Run]) -> list[str]:
    """Where else than in entries a token lives on in the runs' models; none where entries are all there is."""
    said: dict[str, None] = {}
    for run in runs:
        text = str(run.manifest["model"].get("holding") or "")
        ablated = text and run.configuration.get("states") == "ablate"
        said[text + "; here the states are rebuilt without what removed tokens wrote" * bool(ablated)] = None
    return [text for text in said if text]


def candidate_lines(run: Run, frame: pd.DataFrame) -> list[str]:
    """What rules choose among, and how many of them each budget, which is of the whole context, comes to.

    Empty where only compressors were measured: what they protect follows their budgets.
    """
    of_rules = frame[~frame["compressor"]]
    if of_rules.empty:
        return []
    first, last = (run.configuration.get(f"protect_{end}") or 0 for end in ("first", "last"))
    if run.configuration.get("measure_on") is not None:
        return [candidates_by_spans(run, of_rules, first, last)]
    context = int(of_rules["context"].max())
    count = context - first - last
    comes_to = []
    for (budget, mode), part in of_rules.groupby(["budget", "mode"], sort=False):
        selected = float(part["selected"].mean())
        if math.isnan(selected):
            continue
        of_context = f"{selected / context:.0%} of the context"
        what = (
            f"{entries(selected)} of these dropped"
            if mode == "drop"
            else f"{entries(selected)} kept with the protected"
        )
        comes_to.append(f"; budget {budget}: {what}, {of_context}")
    return [
        f"candidates: {count} of {context} context tokens; the first {first} and the last {last} are protected"
        + "".join(comes_to)
    ]


def grain_lines(frame: pd.DataFrame) -> list[str]:
    """At which grain each rule chose; those that chose nothing are left out."""
    by_grain: dict[str, list[str]] = {}
    for selector, per in grains(frame).items():
        by_grain.setdefault(per, []).append(selector)
    each = [f"{', '.join(names)} per {per}" for per, names in by_grain.items() if per]
    return [f"grain: {'; '.join(each)}"] if each else []


def control_lines(frame: pd.DataFrame) -> list[str]:
    """What position-matched controls share with their rules, and which rules have none; or that there is no control."""
    names = list(grains(frame))
    if not any(is_control(selector) for selector in names):
        return ["no control was measured (random, say): what any choice of as many entries would do is not known"]
    rules = [name for name in frame.loc[~frame["compressor"], "selector"].unique() if not is_control(name)]
    alone = [name for name in rules if position_control_for(frame, name) is None]
    lines = matched_text(frame)
    if alone:
        lines.append(
            f"no position-matched control: {', '.join(alone)}; `selectors` position-matched:of={alone[0]}, say"
        )
    return lines


def unfinished(runs: Mapping[str, Run], frame: pd.DataFrame) -> list[str]:
    """Of each run (by name) that is not wholly measured, how much there is and how to go on.

    Args:
        frame: curves of these runs, as `curves.read` gives them.
    """
    counts = frame.groupby("run")["document"].nunique()
    return [
        f"{name} is not finished; {documents_text(run, int(counts[name]))}"
        for name, run in runs.items()
        if counts[name] < len(run.documents)
    ]


def documents_text(run: Run, measured: int) -> str:
    """How many documents are measured, and how to go on if not all are; why no more are wanted; which were skipped."""
    text = f"documents: {measured} of {len(run.documents)} measured"
    if run.stopped is not None:  # looking until a width is reached finds widths that came out small by chance
        level = f"{method_for([run]).level:.0%}"
        text += f" (ended by `until`: intervals are of nominal {level}, to cover 95% after many looks)"
    if measured < len(run.documents) and run.manifest.get("command"):
        text += f" (continue with: {run.manifest['command']})"
    skipped: Sequence[dict[str, Any]] = run.manifest.get("skipped") or []
    if skipped:
        shown = ", ".join(f"{s['name']} ({s['reason']})" for s in skipped[:3])
        text += f"; {len(skipped)} skipped: {shown}{', ...' if len(skipped) > 3 else ''}"
    return text

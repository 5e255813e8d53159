"""Rules against a baseline, over the documents of one or several runs that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.controls import controls, effects, floor_text, spread
from forward_influence.analysis.crossover import crossovers
from forward_influence.analysis.curves import (
    MIDDLE,
    NEAR,
    RULE,
    ZONES,
    bins,
    matrix,
    name_zones,
    read,
    zone_edges,
)
from forward_influence.analysis.decay import fit_decay, shares
from forward_influence.analysis.pairing import (
    CONDITIONS,
    CONTROLS,
    RANDOM,
    align,
    baseline_for,
    grains,
    is_called,
    variants,
)
from forward_influence.analysis.statistics import MINIMUM_DOCUMENTS, Method, estimate, holm, paired
from forward_influence.analysis.summary import documents_text, grain_remark
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.runs import Run

#: Fields of the configuration in which runs must agree to be compared, beside the model's fingerprint.
MUST_AGREE = (
    "context",
    "continuation",
    "continuation_from",
    "temperature",
    "protect_first",
    "protect_last",
    "layers",
    "heads",
    "positions_per_bin",
    "rerotate",
    "dtype",
)
#: The coverage is measured by benchmarks/statistics_coverage.py.
BOOTSTRAP_NOTE = (
    "intervals: 95%, bootstrap over documents (expanded percentiles); measured coverage with log-normal effects: "
    "93% at 6 documents, 95% at 12 and 24 (docs/statistics.md)"
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        table: a row per rule and zone; columns in `compare`.
        decay: a row per rule, `decay.fit_decay` with the shares of `decay.shares`.
        crossovers: a row per pair of rules, `crossover.crossovers`.
        controls: a row per rule, control and bin, `controls.controls`.
        effects: a row per rule and bin where both effects were measured, `controls.effects`.
        notes: lines for under the tables.
        curves: the tidy frame in log-spaced bins that decay and crossovers were made from, all runs as one.
        zones: as `curves` in near, middle and far (column `zone`), which the table was made from.
    """

    table: pd.DataFrame
    decay: pd.DataFrame
    crossovers: pd.DataFrame
    controls: pd.DataFrame
    effects: pd.DataFrame
    notes: list[str]
    curves: pd.DataFrame
    zones: pd.DataFrame


def compare(
    runs: Run | Sequence[Run],
    baseline: str = RANDOM,
    *,
    budgets: Sequence[str] = (),
    cluster: str | None = None,
    method: Method = "t",
    pairs: list[tuple[str, str]] | None = None,
    near: float = NEAR,
    middle: float = MIDDLE,
) -> Comparison:
    """Compare every rule with `baseline`, under equal budget, mode, effect and layers, on the same documents.

    The table's columns: those of `curves.RULE` (`run` joins the names of all runs), `per`, `zone`, `baseline` (its
    spec; empty for its own rows), `kl`, `kl_low`, `kl_high` (geometric mean over documents, nats), `ratio`,
    `ratio_low`, `ratio_high` (geometric mean of per-document ratios), `p` (Wilcoxon signed-rank), `p_holm` (over near,
    middle and far of the rule), `rank_biserial` (effect size, -1..1), `wins` (documents in which the rule exceeds the
    baseline), `n` (documents or clusters), `flags`.

    Args:
        baseline: a selector spec, or the name of a rule measured in one or several variants (that of the same grain
            is taken).
        budgets: only these; all without any.
        cluster: field of the documents, such as "author": its groups are the unit.
        pairs: (A, B) for crossovers; by default every pair of rules that are no controls.

    Raises:
        UsageError: the runs cannot be compared (which field), or the baseline or a budget was not measured.
        ForwardInfluenceError: a run holds no measured document.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    check_comparable(several)
    binnings = [lambda m: bins(m, log=True), lambda m: zone_edges(m, near, middle), bins]
    merged = [_merge(frame) for frame in read(several, binnings, cluster)]
    notes = _notes(several, merged[1][0], merged[1][1], cluster, method)
    curves, zones, even = (_of_budgets(frame, budgets) for frame, _ in merged)
    named = variants(list(grains(zones)), baseline)
    if not named:
        known = list(grains(zones))
        raise UsageError(
            f"baseline {baseline!r} was not measured{did_you_mean(baseline, known)}; measured: {', '.join(known)}"
        )
    clustered = cluster is not None
    options: dict[str, Any] = {"clustered": clustered, "method": method}
    if pairs is not None:
        _check_pairs(pairs, list(grains(zones)))
    plain = curves[[not any(is_called(s, name) for name in CONTROLS) for s in curves["selector"]]]
    decay = fit_decay(curves, **options).drop(columns="n")
    decay = decay.merge(shares(zones, **options).drop(columns="reason"), on=RULE)
    return Comparison(
        table=_table(name_zones(zones), baseline, **options),
        decay=decay,
        crossovers=crossovers(curves if pairs is not None else plain, pairs, clustered=clustered),
        controls=controls(even, baseline, **options),
        effects=effects(even, **options),
        notes=notes,
        curves=curves,
        zones=name_zones(zones),
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in what makes their numbers comparable.

    Raises:
        UsageError: naming both runs and every field that differs, with both values.
    """
    first = runs[0]
    for other in runs[1:]:
        fields = []
        models = [run.manifest.get("model", {}) for run in (first, other)]
        if models[0].get("fingerprint") != models[1].get("fingerprint"):
            fields.append(f"model ({models[0].get('spec')} against {models[1].get('spec')})")
        for name in MUST_AGREE:
            here, there = first.configuration.get(name), other.configuration.get(name)
            if here != there:
                fields.append(f"{name} ({json.dumps(here)} against {json.dumps(there)})")
        prints = [{d["name"]: d["fingerprint"] for d in run.documents} for run in (first, other)]
        changed = [name for name in prints[0] if name in prints[1] and prints[0][name] != prints[1][name]]
        if changed:
            fields.append(f"the text of document {changed[0]!r}")
        if fields:
            raise UsageError(
                f"{first.folder} and {other.folder} cannot be compared: they differ in {'; '.join(fields)}; "
                "compare them one by one, or measure again with equal settings"
            )


def _merge(frame: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """All runs as one, a rule measured on a document by two runs averaged; and whether there was such a one."""
    names = list(frame["run"].unique())
    frame = frame.assign(run=" + ".join(names))
    keys = [*RULE, "document", "low", "high"]
    twice = bool(frame.duplicated(keys).any()) if len(names) > 1 else False
    if twice:
        values = {name: "first" for name in frame.columns if name not in keys}
        values |= dict.fromkeys(("kl", "nll_delta", "top1_changed", "floor"), "mean")
        frame = frame.groupby(keys, sort=False, as_index=False).agg(values)
    return frame, twice


def _of_budgets(frame: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    measured = {_budget(b): b for b in frame["budget"].unique()}
    missing = [b for b in budgets if _budget(b) not in measured]
    if missing:
        raise UsageError(f"budget {missing[0]} was not measured; measured: {', '.join(measured.values())}")
    return frame[frame["budget"].isin([measured[_budget(b)] for b in budgets])] if budgets else frame


def _budget(text: str) -> tuple[bool, float | str]:
    """0.2 and 0.20 are one budget; 1 is a token and 1.0 everything."""
    try:
        return "." in text, float(text)
    except ValueError:
        return False, text


def _check_pairs(pairs: list[tuple[str, str]], known: list[str]) -> None:
    for spec in (spec for pair in pairs for spec in pair):
        if spec not in known:
            raise UsageError(f"rule {spec!r} was not measured{did_you_mean(spec, known)}; measured: {', '.join(known)}")


def _table(zones: pd.DataFrame, baseline: str, *, clustered: bool, method: Method) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for key, group in zones.groupby(CONDITIONS, sort=False):
        for selector, part in group.groupby("selector", sort=False):
            about = {**dict(zip(CONDITIONS, key, strict=True)), "selector": str(selector)}
            rows += _zones_of_rule(about, part, group, baseline, clustered, method)
    values = ["kl", "kl_low", "kl_high", "ratio", "ratio_low", "ratio_high", "p", "p_holm", "rank_biserial", "wins"]
    return pd.DataFrame(rows)[[*RULE, "per", "zone", "baseline", *values, "n", "flags"]]


def _zones_of_rule(
    about: dict[str, Any], part: pd.DataFrame, group: pd.DataFrame, baseline: str, clustered: bool, method: Method
) -> list[dict[str, Any]]:
    """Near, middle and far of one rule: its means, and its comparison with the baseline unless it is one itself."""
    selector = about["selector"]
    curve = matrix(part)
    groups = curve.clusters if clustered else None
    itself = selector in variants(list(grains(group)), baseline)
    control = None if itself else baseline_for(group, selector, baseline)
    both = None if control is None else align(part, group[group["selector"] == control])
    remarks = [] if control is None else grain_remark(grains(group), selector, control)
    if not itself and both is None:
        remarks.append(f"no {baseline} to compare with under these conditions")
    rows = []
    for index, zone in enumerate(ZONES):
        out = estimate(curve.kl[:, index], groups, method=method)
        row = {**about, "per": part["per"].iloc[0], "zone": zone, "baseline": control or "", **spread("kl", out)}
        notes = [remark for remark in [out.reason, *remarks] if remark]
        notes += ["under 3x the noise floor"] if curve.below_floor[index] else []
        row |= dict.fromkeys(("ratio", "ratio_low", "ratio_high", "p", "rank_biserial"), np.nan)
        row |= {"wins": 0, "n": out.n}
        if both is not None:
            a, b = both
            pair = paired(a.kl[:, index], b.kl[:, index], a.clusters if clustered else None, method=method)
            row |= {"ratio": pair.ratio, "ratio_low": pair.low, "ratio_high": pair.high, "p": pair.p}
            row |= {"rank_biserial": pair.effect, "wins": pair.wins, "n": pair.n}
            notes += [pair.reason] if pair.reason and pair.reason not in notes else []
        rows.append({**row, "flags": "; ".join(notes)})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(adjusted)
    return rows


def _notes(runs: Sequence[Run], zones: pd.DataFrame, twice: bool, cluster: str | None, method: Method) -> list[str]:
    edges = zones.groupby("bin")[["low", "high"]].first()
    where = ", ".join(f"{zone} {low} to {high - 1}" for zone, (low, high) in zip(ZONES, edges.to_numpy(), strict=True))
    lines = [
        f"mean KL in nats, geometric mean over documents, and per-document ratios to the baseline; {where} tokens",
        "p: Wilcoxon signed-rank on log ratios, Holm over near, middle and far of each rule",
        "effect size: matched-pairs rank-biserial correlation, -1 to 1",
        BOOTSTRAP_NOTE if method == "bootstrap" else "intervals: 95%, Student t over documents, on logs",
        floor_text(zones),
    ]
    before = len(lines)
    for run in runs:
        measured = sum(d["name"] in set(zones["document"]) and run.part_path(d["part"]).exists() for d in run.documents)
        lines.append((f"{run.folder}: " if len(runs) > 1 else "") + documents_text(run, measured))
    if twice:
        lines.insert(before, "rules that several of the runs measured on a document are averaged over these runs")
    units = zones["cluster"].nunique()
    if cluster is not None:
        lines.append(f"unit: {cluster} ({units} groups of {zones['document'].nunique()} documents)")
    if units < MINIMUM_DOCUMENTS:
        lines.append(
            f"no intervals and no p-values: they need {MINIMUM_DOCUMENTS} documents (or clusters), not {units}"
        )
    elif units < MINIMUM_DOCUMENTS + 1:
        lines.append("with 6 documents no Holm-corrected p can fall below 0.09: read the intervals and effect sizes")
    return lines

"""Rules against a baseline, over the documents of one or several runs that can be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.measures.answers import plan_answers
from forward_influence.analysis.measures.controls import controls, effects, spread
from forward_influence.analysis.measures.crossover import crossovers
from forward_influence.analysis.measures.decay import fit_decay, shares
from forward_influence.analysis.measures.equivalence import equivalences, undecided
from forward_influence.analysis.measures.identical import identical_rules, with_flags
from forward_influence.analysis.measures.notes import Note, comparison_notes
from forward_influence.analysis.measures.spans import has_spans, span_curves, span_names
from forward_influence.analysis.reading.comparable import check_comparable
from forward_influence.analysis.reading.curves import RULE, Curves, read_curves
from forward_influence.analysis.reading.held import held_by, with_held
from forward_influence.analysis.reading.matrix import UNDER_FLOOR, matrix
from forward_influence.analysis.reading.pairing import (
    CONDITIONS,
    RANDOM,
    align,
    baseline_for,
    grains,
    measured_rule,
    pair_remarks,
    variants,
    without_controls,
)
from forward_influence.analysis.statistics.inference import STUDENT, Kind, Method, estimate, holm, paired
from forward_influence.analysis.statistics.means import arithmetic, columns, ratio_of_means
from forward_influence.analysis.statistics.stopping import method_for
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.storage.run import Run
from forward_influence.storage.shards import HELD
from forward_influence.utils.distances import MIDDLE, NEAR, ZONES
from forward_influence.utils.margins import MARGIN


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    All tables have the columns `held`, `pinned` and `chosen` (`analysis.held`), and where a row sets a rule against
    another, `other_held`.

    Attributes:
        table: a row per rule and zone; columns in `compare`. Shown as two tables: comparison, and both means.
        decay: a row per rule, `decay.fit_decay` with the shares of `decay.shares`.
        crossovers: a row per pair of rules, `crossover.crossovers`.
        controls: a row per rule, control and bin, `controls.controls`.
        effects: a row per rule and bin where both effects were measured, `controls.effects`.
        remarks: lines for under the tables, each with the tables that it is about.
        curves: the tidy frame in log-spaced bins that decay was made from, all runs as one.
        fine: as `curves` in the narrow bins that crossovers were made from.
        zones: as `curves` in near, middle and far (column `zone`), which the table was made from.
        spans: as `table`, a row per rule and measured span (column `span`); empty where runs are measured by lengths.
        equivalence: a row per rule and zone, `equivalence.equivalences`.
        answers: a row per question of a run's plan and zone, `answers.plan_answers`; empty where no run had a plan.
        baseline: as asked for.
        clustered, method: how intervals were made, as in `statistics.paired`.
    """

    table: pd.DataFrame
    decay: pd.DataFrame
    crossovers: pd.DataFrame
    controls: pd.DataFrame
    effects: pd.DataFrame
    remarks: list[Note]
    curves: pd.DataFrame
    fine: pd.DataFrame
    zones: pd.DataFrame
    spans: pd.DataFrame = field(default_factory=pd.DataFrame)
    equivalence: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: pd.DataFrame = field(default_factory=pd.DataFrame)
    baseline: str = RANDOM
    clustered: bool = False
    method: Method = STUDENT

    @property
    def notes(self) -> list[str]:
        """All lines for under the tables."""
        return [note.text for note in self.remarks]

    def notes_about(self, tables: Collection[str], *, only: bool = False) -> list[str]:
        """The lines that concern some of the tables, by the names of their attributes.

        Args:
            only: leave out those that concern all tables.
        """
        return [note.text for note in self.remarks if note.concerns(tables) and not (only and not note.tables)]


def compare(
    runs: Run | Sequence[Run],
    baseline: str = RANDOM,
    *,
    budgets: Sequence[str] = (),
    cluster: str | None = None,
    method: Kind = "t",
    pairs: Sequence[tuple[str, str]] | None = None,
    margin: float = MARGIN,
    near: float = NEAR,
    middle: float = MIDDLE,
    read: Curves | None = None,
) -> Comparison:
    """Compare every rule with `baseline`, under one budget, mode, effect and layers, on the same documents.

    One budget does not mean that compressors hold equally much: one that keeps the prompt whole holds more. What each
    holds is in the tables (`held`), and where a rule and its baseline differ, `flags` says so.

    The table's columns: those of `curves.RULE` (`run` joins the names of all runs), `per`, those of `curves.HELD`,
    `zone`, `baseline` (its spec; empty for its own rows), `other_held` (what the baseline holds), `kl`, `kl_low`,
    `kl_high` (geometric mean over documents, nats), `ratio`, `ratio_low`, `ratio_high` (geometric mean of per-document
    ratios), `p` (Wilcoxon signed-rank), `p_holm` (over near, middle and far of the rule), `rank_biserial` (effect size,
    -1..1), `wins` (documents in which the rule exceeds the baseline; missing for the baseline itself), `n` (documents
    or clusters), `flagged` (the mean is under the noise-floor flag), `ratio_flagged` (the mean or the baseline's is),
    `flags`.

    Args:
        baseline: a selector spec, or the name of a rule measured in one or several variants (that of the same grain
            is taken).
        budgets: only these; all without any.
        cluster: field of the documents, such as "author": its groups are the unit.
        pairs: (A, B) for crossovers; by default every pair of rules that are no controls.
        margin: ratios between 1 / margin and margin are equal; the questions of a plan have their own.
        read: curves of these runs where they were read before, with the same zones and cluster.

    Raises:
        UsageError: the runs cannot be compared (which field), or the baseline or a budget was not measured.
        ForwardInfluenceError: a run holds no measured document.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    check_comparable(several)
    found = read_curves(several, near=near, middle=middle, cluster=cluster) if read is None else read
    counts = found.zones.groupby("run", sort=False)["document"].nunique()  # in the order of the runs
    names = [str(name) for name in counts.index]
    kept = of_budgets(found, budgets)
    twice = len(several) > 1 and bool(kept.zones.duplicated([*_SAME, "low", "high"]).any())
    name = " + ".join(names)
    even, zones, log, fine = (_merge(frame, name) for frame in (kept.even, kept.zones, kept.log, kept.fine))
    known = list(grains(zones))
    if not variants(known, baseline):
        raise UsageError(
            f"baseline {baseline!r} was not measured{did_you_mean(baseline, known)}; measured: {', '.join(known)}; "
            "choose one with `baseline`"
        )
    clustered = cluster is not None
    how = method_for(several, method)
    options: dict[str, Any] = {"clustered": clustered, "method": how}
    if pairs is not None:
        pairs = [(measured_rule(a, known), measured_rule(b, known)) for a, b in pairs]
    plain = fine if pairs is not None else without_controls(fine)
    decay = fit_decay(log, **options).drop(columns="n")
    decay = decay.merge(shares(zones, **options).drop(columns="reason"), on=RULE)
    crossed = crossovers(plain, pairs, clustered=clustered, level=how.level)
    pairs_alike = identical_rules(fine)
    table = with_flags(table_of(zones, baseline, **options), pairs_alike)
    measured = list(zip(several, counts.tolist(), strict=True))
    equal = equivalences(zones, baseline, margin, **options)
    return Comparison(
        table=table,
        decay=with_held(decay, zones),
        crossovers=with_held(crossed, zones, "rule", "over"),
        controls=with_held(controls(even, baseline, **options), zones, other="control_selector"),
        effects=with_held(effects(even, **options), zones),
        remarks=[
            *comparison_notes(
                measured,
                table,
                zones,
                decay,
                crossed,
                finest=int((fine["high"] - fine["low"]).min()),
                twice=twice,
                cluster=cluster,
                method=how,
                alike=pairs_alike,
            ),
            *(Note(line, ("table", "equivalence")) for line in undecided(equal)),
        ],
        curves=log,
        fine=fine,
        zones=zones,
        spans=_by_span(several, name, baseline, budgets, cluster, options),
        equivalence=equal,
        answers=plan_answers(dict(zip(names, several, strict=True)), found.zones, cluster=cluster),
        baseline=baseline,
        **options,
    )


def _by_span(
    runs: Sequence[Run],
    name: str,
    baseline: str,
    budgets: Sequence[str],
    cluster: str | None,
    options: Mapping[str, Any],
) -> pd.DataFrame:
    """The table by span of runs, read together under a name; empty where they are measured by lengths."""
    if not has_spans(runs):
        return pd.DataFrame()
    frame = _merge(span_curves(runs, cluster), name)
    if budgets:
        known = frame["budget"].unique().tolist()
        frame = frame[frame["budget"].isin([measured_budget(text, known) for text in budgets])]
    return table_of(frame, baseline, names=span_names(runs), **options).rename(columns={"zone": "span"})


#: What two measurements have in common that are of one rule on one document.
_SAME = [*(name for name in RULE if name != "run"), "document"]


def _merge(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """All runs as one, a rule measured on a document by several runs averaged over them."""
    frame = frame.assign(run=name)
    keys = [*RULE, "document", "low", "high"]
    if not frame.duplicated(keys).any():
        return frame
    values = {column: "first" for column in frame.columns if column not in keys}
    values |= dict.fromkeys(("kl", "measured", "nll_delta", "top1_changed", "floor", "overlap"), "mean")
    return frame.groupby(keys, sort=False, as_index=False).agg(values)


def of_budgets(curves: Curves, budgets: Sequence[str]) -> Curves:
    """Curves at these budgets only, at all without any; 0.2 and 0.20 are one budget.

    Raises:
        UsageError: a budget was not measured; which were is named.
    """
    if not budgets:
        return curves
    wanted = [measured_budget(b, curves.even["budget"].unique().tolist()) for b in budgets]
    return curves.where(lambda frame: frame["budget"].isin(wanted))


def measured_budget(text: str, measured: Sequence[str]) -> str:
    """The budget of a run that a budget as typed stands for.

    Raises:
        UsageError: it was not measured; which were is named.
    """
    found = next((b for b in measured if _budget(b) == _budget(text)), None)
    if found is None:
        raise UsageError(f"budget {text} was not measured; measured: {', '.join(measured)}")
    return found


def _budget(text: str) -> tuple[bool, float | str]:
    """0.2 and 0.20 are one budget; 1 is a token and 1.0 everything."""
    try:
        return "." in text, float(text)
    except ValueError:
        return False, text


def table_of(
    zones: pd.DataFrame, baseline: str, *, names: Sequence[str] = ZONES, clustered: bool, method: Method
) -> pd.DataFrame:
    """The table of `compare`, a row per rule and bin.

    Args:
        zones: curves in these bins.
        names: of the bins, in the column `zone`.
    """
    rows: list[dict[str, Any]] = []
    for key, group in zones.groupby(CONDITIONS, sort=False):
        for selector, part in group.groupby("selector", sort=False):
            about = {**dict(zip(CONDITIONS, key, strict=True)), "selector": str(selector)}
            rows += _zones_of_rule(about, part, group, baseline, names, clustered, method)
    values = [f"{name}{end}" for name in ("kl", "ratio", "mean", "ratio_of_means") for end in ("", "_low", "_high")]
    values += ["p", "p_holm", "rank_biserial", "wins", "n", "flagged", "ratio_flagged", "flags"]
    table = pd.DataFrame(rows)[[*RULE, "per", *HELD, "zone", "baseline", "other_held", *values]]
    return table.astype({"wins": "Int64"})  # whole numbers beside missing ones


def _zones_of_rule(
    about: dict[str, Any],
    part: pd.DataFrame,
    group: pd.DataFrame,
    baseline: str,
    names: Sequence[str],
    clustered: bool,
    method: Method,
) -> list[dict[str, Any]]:
    """The bins of one rule: its means, and its comparison with the baseline unless it is one itself."""
    selector = about["selector"]
    curve = matrix(part)
    known = list(grains(group))
    groups = curve.clusters if clustered else None
    itself = selector in variants(known, baseline)
    control = None if itself else baseline_for(group, selector, baseline)
    both = None if control is None else align(part, group[group["selector"] == control])
    remarks = [] if control is None else pair_remarks(group, selector, control)
    if not itself and both is None:
        remarks.append(f"no {baseline} to compare with under these conditions")
    means = arithmetic(curve.kl, groups, method.level)
    missing = np.full(len(names), np.nan)
    of_means = (missing, missing, missing)
    if both is not None:
        paired_groups = both[0].clusters if clustered else None
        of_means = ratio_of_means(both[0].kl, both[1].kl, paired_groups, method.level)
    rows = []
    for index, zone in enumerate(names):
        out = estimate(curve.kl[:, index], groups, method=method)
        row = {**about, "per": part["per"].iloc[0], "zone": zone, "baseline": control or "", **spread("kl", out)}
        row |= {**columns("mean", means, index), **columns("ratio_of_means", of_means, index)}
        row |= {name: float(part[name].mean()) for name in HELD}
        row["other_held"] = np.nan if control is None else held_by(group)[control]
        notes = [remark for remark in [out.reason, *remarks] if remark]
        row["flagged"] = bool(curve.below_floor[index])
        row["ratio_flagged"] = row["flagged"] or bool(both is not None and both[1].below_floor[index])
        notes += [f"{zone} {UNDER_FLOOR}"] if row["flagged"] else []
        row |= dict.fromkeys(("ratio", "ratio_low", "ratio_high", "p", "rank_biserial"), np.nan)
        row |= {"wins": None, "n": out.n}
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

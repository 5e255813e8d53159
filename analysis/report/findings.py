"""What a comparison found, as sentences: each from the numbers, with its interval, negative findings included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import interval, join, many
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.measures.controls import ratios
from forward_influence.analysis.measures.crossover import REFERENCE, crossovers
from forward_influence.analysis.measures.decay import HALF_FROM
from forward_influence.analysis.measures.fading import told_apart
from forward_influence.analysis.reading.held import against, held_by, held_sentences, held_table
from forward_influence.analysis.reading.matrix import UNDER_FLOOR
from forward_influence.analysis.reading.pairing import (
    CONDITIONS,
    align,
    grain_remark,
    grains,
    is_control,
    option_of,
    position_control_for,
    without_controls,
)
from forward_influence.analysis.report.findings_crossing import (
    crossing_clause,
    crossing_sentence,
    ratio_text,
)
from forward_influence.analysis.report.findings_selected import of_overlap, of_tokens
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS
from forward_influence.analysis.statistics.means import columns, disagreements, ratio_of_means
from forward_influence.utils.distances import ZONES

#: The rule that the paper's claim is about.
CLAIMED = "entropy"
MOST_CONDITIONS = 4
_KEPT = (
    "only what a rule selects is kept here: KL is the divergence from the full cache that dropping all else causes, "
    "and less of it is better."
)
_NAMED = {"budget": "budget {}", "mode": "{} mode", "effect": "{} effect"}


@dataclass(frozen=True)
class Evidence:
    """What the sentences are made from.

    Attributes:
        found: from `compare`.
        overlap: from `overlap_summary`, or None without selections.
        profile: from `token_profile`, or None without selections.
    """

    found: Comparison
    overlap: pd.DataFrame | None = None
    profile: pd.DataFrame | None = None


@dataclass(frozen=True)
class Findings:
    """Sentences that belong together, and what they are about ("" where that is said elsewhere)."""

    heading: str
    sentences: list[str]


@dataclass(frozen=True)
class _Condition:
    """What was found under one condition: one budget, mode and effect; compressors may still hold unequally much.

    Attributes:
        main: it is spoken of in full; what holds of all conditions alike is said of this one.
    """

    found: Comparison
    chosen: dict[str, str]
    main: bool

    @property
    def keeps(self) -> bool:
        """Whether only what a rule selects is kept: then the KL is what the rule loses, not what its choice does."""
        return self.chosen["mode"] == "keep"

    @property
    def what(self) -> str:
        """What the KL is called."""
        return "divergence" if self.keeps else "influence"

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        for column, value in self.chosen.items():
            if column in frame.columns:
                frame = frame[frame[column] == value]
        return frame

    def zone_ratios(self, rule: str, other: str, comparisons: int = 1) -> dict[str, dict[str, Any]]:
        """One rule as a multiple of another, near, middle and far; empty where no document has both.

        Args:
            comparisons: from which this one is picked; intervals are as wide as that asks for.
        """
        method = self.found.method.of_many(comparisons)
        made = ratios(*self._parts(rule, other), clustered=self.found.clustered, method=method)
        return dict(zip(ZONES, made, strict=False))

    def both_ratios(self, rule: str, other: str) -> dict[str, dict[str, Any]]:
        """As `zone_ratios`, with the ratio of arithmetic means."""
        made, both = self.zone_ratios(rule, other), align(*self._parts(rule, other))
        if both is not None:
            groups = both[0].clusters if self.found.clustered else None
            of_means = ratio_of_means(both[0].kl, both[1].kl, groups, self.found.method.level)
            for index, zone in enumerate(made):
                made[zone] |= columns("ratio_of_means", of_means, index)
        return made

    def _parts(self, *rules: str) -> list[pd.DataFrame]:
        zones = self.of(self.found.zones)
        return [zones[zones["selector"] == name] for name in rules]

    def mind(self, rule: str, other: str) -> str:
        """Sentences on what else tells two rules apart: unequal numbers of entries held, and (said of the first
        condition only) differing grains; "" where nothing does."""
        zones = self.of(self.found.zones)
        differ = self.holding(rule, other)
        remarks = grain_remark(grains(zones), rule, other, option_of(zones, other)) if self.main else []
        said = f" Not of one size: {rule} {differ} of {other}." if differ else ""
        return said + (f" Not like for like: {rule} chooses {remarks[0]}." if remarks else "")

    def holding(self, rule: str, other: str) -> str:
        """ "holds 268 against 96 entries", or "" where both hold equally much."""
        return against(held_by(self.of(self.found.zones)), rule, other)


def findings(evidence: Evidence) -> list[Findings]:
    """The sentences, most important first: the first condition in full, the others (`MOST_CONDITIONS`) in short."""
    found = evidence.found
    conditions, left_out = _conditions(found.table)
    varied = [c for c in _NAMED if len({condition[c] for condition in conditions}) > 1]
    made = [Findings("", _warnings(found.table) + left_out)]
    for place, chosen in enumerate(conditions[:MOST_CONDITIONS]):
        condition = _Condition(found, chosen, main=place == 0)
        sentences = [_KEPT] if condition.keeps and condition.main else []
        sentences += held_sentences(held_table(condition.of(found.zones)))
        sentences += _crossing(condition) + _strongest(condition)
        if condition.main:
            sentences += (
                _against_baseline(condition) + _means_apart(condition) + _against_matched(condition) + _decay(condition)
            )
        sentences += _floor(condition)
        heading = ", ".join(_NAMED[c].format(chosen[c]) for c in varied)
        made.append(Findings(heading, sentences))
    rest = _effects(found.effects) + of_overlap(evidence.overlap) + of_tokens(evidence.profile)
    if len(conditions) > MOST_CONDITIONS:
        rest.append(
            f"Of {len(conditions)} conditions, the last {len(conditions) - MOST_CONDITIONS} are in tables only."
        )
    made.append(Findings("all conditions" if varied else "", rest))
    rules = tuple(found.table["selector"].unique()) + _runs(evidence)
    told: list[Findings] = []
    for part in (f for f in made if f.sentences):
        heading, sentences = _capital(part.heading, ()), [_capital(s, rules) for s in part.sentences]
        if told and told[-1].heading == heading:
            told[-1].sentences.extend(sentences)
        else:
            told.append(Findings(heading, sentences))
    return told


def _runs(evidence: Evidence) -> tuple[str, ...]:
    """The runs that sentences on selections are about."""
    frames = [f for f in (evidence.overlap, evidence.profile) if f is not None and not f.empty]
    return tuple(f"{name}: " for frame in frames for name in frame["run"].unique())


def _capital(sentence: str, names: tuple[str, ...]) -> str:
    """A capital at the start, except of the name of a rule or run: that is written as it is typed."""
    return sentence if names and sentence.startswith(names) else sentence[:1].upper() + sentence[1:]


def _conditions(table: pd.DataFrame) -> tuple[list[dict[str, str]], list[str]]:
    """The conditions to speak of (no sweeps over layers, no direct effects beside total ones), and what is left out."""
    every = [dict(zip(CONDITIONS, key, strict=True)) for key in table.groupby(CONDITIONS, sort=False).groups]
    whole = [c for c in every if c["layers"] == "all"]
    total = [{**c, "effect": ""} for c in whole if c["effect"] == "total"]
    kept = [c for c in whole if c["effect"] == "total" or {**c, "effect": ""} not in total]
    said = []
    if len(whole) < len(every):
        said.append("Layers were ablated one by one: what each layer does is in the layers picture and the tables.")
    return kept, said


def _warnings(table: pd.DataFrame) -> list[str]:
    documents = int(table["n"].max())
    if documents >= MINIMUM_DOCUMENTS:
        return []
    counted = many(documents, "document")
    return [
        f"With {counted} nothing can be inferred: intervals and p-values need {MINIMUM_DOCUMENTS} (or as many "
        "clusters). What follows describes these documents only."
    ]


def _crossing(condition: _Condition) -> list[str]:
    """Where rules' influence overtakes attention's: entropy's, which the paper is about, and the others' in one."""
    curves, found = condition.of(condition.found.fine), condition.found
    rules = curves["selector"].unique().tolist()
    if REFERENCE not in rules:
        return []
    others = [r for r in rules if r != REFERENCE and not is_control(r)]

    def rows(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
        made = crossovers(curves, pairs, clustered=found.clustered, level=found.method.level)
        return [{str(k): v for k, v in row.items()} for row in made.to_dict("records")]

    back = {row["over"]: row for row in rows([(REFERENCE, rule) for rule in others])}
    made, rest = [], []
    for row in rows([(rule, REFERENCE) for rule in others]):
        zones = condition.both_ratios(row["rule"], REFERENCE)
        row["back"] = back.get(row["rule"])
        if row["rule"] == CLAIMED:
            made.append(crossing_sentence(row, zones, condition.what) + condition.mind(CLAIMED, REFERENCE))
        else:
            held = condition.holding(row["rule"], REFERENCE)
            rest.append(crossing_clause(row, zones) + (f" ({row['rule']} {held})" if held else ""))
    if rest:
        of_what = "of the other rules, " if made else f"in {condition.what}, "
        made.append(f"{of_what}{'; '.join(rest)}.")
    return made


def _strongest(condition: _Condition) -> list[str]:
    """The rule with the largest influence near and far, and the rules that cannot be told from it.

    The largest of k rules is larger than others by chance alone: intervals are as wide as all their pairs ask for.
    """
    table = without_controls(condition.of(condition.found.table))
    sentences: list[str] = []
    minded: set[str] = set()
    for zone, where in (("near", "near the context"), ("far", "far from the context")):
        rows = table[(table["zone"] == zone) & ~table["flagged"]].dropna(subset=["kl"])
        if len(rows) < 2:
            continue
        top = rows.loc[rows["kl"].idxmax()]
        text = f"{where}, {top['selector']} has the largest {condition.what}: "
        text += interval(top["kl"], top["kl_low"], top["kl_high"], 2, " nats")
        if top["baseline"] and not top["ratio_flagged"]:
            text += f", {ratio_text(top, 2)} {top['baseline']}'s"
        alike, pairs = [], len(rows) * (len(rows) - 1) // 2
        for rule in rows["selector"]:
            ratio = condition.zone_ratios(rule, top["selector"], pairs).get(zone) if rule != top["selector"] else None
            if ratio is not None and ratio["ratio_low"] <= 1 <= ratio["ratio_high"]:
                held = condition.holding(rule, top["selector"])
                alike.append(f"{rule} ({'; '.join(filter(None, [ratio_text(ratio), held]))})")
        text += f"; {join(alike)} cannot be told from it{_of_many(pairs, 'pairs')}." if alike else "."
        if top["baseline"] and top["selector"] not in minded:
            text += condition.mind(top["selector"], top["baseline"])
            minded.add(top["selector"])
        sentences.append(text)
    return sentences


def _against_baseline(condition: _Condition) -> list[str]:
    """Which rules cannot be told from the baseline, and which fall below it, near and far."""
    table = condition.of(condition.found.table)
    rows = table[(table["baseline"] != "") & table["ratio_low"].notna() & ~table["ratio_flagged"]]
    rows = without_controls(rows[rows["zone"].isin(["near", "far"])])
    wide: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for rule, baseline in rows[["selector", "baseline"]].drop_duplicates().itertuples(index=False):
        wide[rule, baseline] = condition.zone_ratios(rule, baseline, len(rows))
    judged: dict[str, dict[str, dict[str, list[str]]]] = {"cannot be told from": {}, "less than": {}}
    for row in rows.itertuples():
        ratio = wide[row.selector, row.baseline][row.zone]
        verdict = "less than" if ratio["ratio_high"] < 1 else "cannot be told from"
        if ratio["ratio_low"] <= 1:
            mine = judged[verdict].setdefault(row.baseline, {}).setdefault(row.selector, [])
            mine.append(f"{row.zone} ({ratio_text(ratio)})")
    sentences = []
    for verdict, of_baselines in judged.items():
        for baseline, some in of_baselines.items():
            each = "; ".join(f"{rule} {join(zones)}" for rule, zones in some.items())
            remarks = "".join(condition.mind(rule, baseline) for rule in some)
            sentences.append(f"{verdict} {baseline}: {each}{_of_many(len(rows), 'comparisons')}.{remarks}")
    return sentences


def _of_many(count: int, what: str) -> str:
    """What the intervals of a sentence are wide for, where that is more than one comparison."""
    return f", intervals as wide as {count} {what} ask for" if count > 1 else ""


def _means_apart(condition: _Condition) -> list[str]:
    """Where geometric and arithmetic means disagree about which side of its baseline a rule is on."""
    lines = disagreements(without_controls(condition.of(condition.found.table)))
    return [f"{line}." for line in lines]


def _against_matched(condition: _Condition) -> list[str]:
    """Each rule as a multiple of its position-matched control: what the choice does beyond where it lies."""
    zones = condition.of(condition.found.zones)
    said = []
    for rule in zones["selector"].unique():
        control = position_control_for(zones, rule)
        made = condition.zone_ratios(rule, control) if control else {}
        each = [f"{ratio_text(made[zone])} {zone}" for zone in ("near", "far") if made and not made[zone]["flagged"]]
        if each:
            shared = zones.loc[zones["selector"] == control, "overlap"].mean()
            holds = "" if math.isnan(shared) else f" ({control} holds {shared:.0%} of the same entries)"
            said.append(f"{rule} {join(each)}{holds}")
    return [f"as a multiple of its position-matched control: {'; '.join(said)}."] if said else []


def _decay(condition: _Condition) -> list[str]:
    """Which rules fade fastest and slowest, if they can be told apart."""
    decay = without_controls(condition.of(condition.found.decay))
    rows = decay[decay["model"].notna() & decay["half_distance"].notna()].sort_values("half_distance")
    if len(rows) < 2:
        return []
    fast, slow = rows.iloc[0], rows.iloc[-1]
    if math.isinf(fast["half_distance"]):
        return [f"no rule's {condition.what} is seen to fall with distance."]
    ends = [f"{_half(row)} ({row['selector']})" for row in (fast, slow)]
    counted = f"half-distances, counted from distance {HALF_FROM}, go from {ends[0]} to {ends[1]} tokens"
    zones = condition.of(condition.found.zones)
    pairs = len(rows) * (len(rows) - 1) // 2
    apart = told_apart(
        *(zones[zones["selector"] == row["selector"]] for row in (fast, slow)),
        comparisons=pairs,
        clustered=condition.found.clustered,
        method=condition.found.method,
    )
    if apart:
        return [f"{fast['selector']}'s {condition.what} fades faster than {slow['selector']}'s: {counted}."]
    if math.isnan(fast["half_low"]):
        return [f"{counted}."]
    return [f"which rule's {condition.what} fades fastest cannot be told: {counted}."]


def _half(row: pd.Series) -> str:
    if math.isinf(row["half_distance"]):
        return "none"
    return interval(row["half_distance"], row["half_low"], row["half_high"])


def _floor(condition: _Condition) -> list[str]:
    table = condition.of(condition.found.table)
    flagged = table[table["flagged"]]
    if flagged.empty:
        return []
    which = [f"{rule} ({join(rows['zone'].tolist())})" for rule, rows in flagged.groupby("selector", sort=False)]
    return [f"{UNDER_FLOOR}, and not to be relied on: {join(which)}."]


def _effects(effects: pd.DataFrame) -> list[str]:
    """How much of the influence is direct, in the nearest and the farthest bin above the noise floor."""
    if effects.empty:
        return []
    first = effects[["budget", "mode", "layers"]].iloc[0]
    rows = effects[(effects[first.index] == first).all(axis=1) & ~effects["flagged"]]
    each: list[str] = []
    for rule, mine in without_controls(rows).groupby("selector", sort=False):
        mine = mine.sort_values("low").dropna(subset=["direct_share"])
        said = [
            f"{interval(r.direct_share, r.direct_share_low, r.direct_share_high, 2)} over {r.low:,} to {r.high - 1:,}"
            for r in _ends(mine)
        ]
        each += [f"{rule} {join(said)}"] if said else []
    at = f" at budget {first['budget']}" if effects["budget"].nunique() > 1 else ""
    return [f"the direct effect's share of the total{at}, by distance in tokens: {'; '.join(each)}."] if each else []


def _ends(rows: pd.DataFrame) -> Sequence[Any]:
    return list(rows.iloc[[0, -1]].itertuples()) if len(rows) > 1 else list(rows.itertuples())

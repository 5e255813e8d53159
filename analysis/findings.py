"""What a comparison found, as sentences: each from the numbers, with its interval, negative findings included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from forward_influence.analysis.compare import Comparison
from forward_influence.analysis.controls import controls
from forward_influence.analysis.crossover import crossovers
from forward_influence.analysis.decay import HALF_FROM
from forward_influence.analysis.pairing import CONDITIONS, CONTROLS, is_called
from forward_influence.analysis.statistics import MINIMUM_DOCUMENTS, paired

#: What other rules are held against where it was measured: the paper's claim (arXiv:2606.26875) is about it.
REFERENCE = "attention"
MOST_CONDITIONS = 4
_NAMED = {"budget": "budget {}", "mode": "{} mode", "effect": "{} effect", "layers": "layers {}"}


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


def say(x: float, digits: int = 2) -> str:
    """A number with `digits` significant digits; "unknown" for NaN, "beyond all bounds" for infinity."""
    if math.isnan(x):
        return "unknown"
    if math.isinf(x):
        return "beyond all bounds"
    if x and (abs(x) < 1e-3 or abs(x) >= 1e5):
        return f"{x:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    decimals = max(digits - 1 - math.floor(math.log10(abs(x))), 0) if x else 0
    return f"{x:,.{decimals}f}"


def tokens(distance: float) -> str:
    """A distance in whole tokens."""
    return f"{distance:,.0f}"


def say_with(value: float, low: float, high: float, unit: str = "", digits: int = 2) -> str:
    """ "0.31 nats [0.25, 0.40]", without brackets where there is no interval."""
    text = f"{say(value, digits)}{unit}"
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{say(low, digits)}, {say(high, digits)}]"


def is_control(selector: str) -> bool:
    """Whether a rule is there to be compared against."""
    return any(is_called(selector, name) for name in CONTROLS)


def join(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def findings(evidence: Evidence) -> list[str]:
    """The sentences, most important first, condition by condition (at most `MOST_CONDITIONS`)."""
    table = evidence.found.table
    conditions = list(table.groupby(CONDITIONS, sort=False).groups)
    varied = [c for c in CONDITIONS if table[c].nunique() > 1]
    sentences: list[str] = []
    for condition in conditions[:MOST_CONDITIONS]:
        chosen = dict(zip(CONDITIONS, condition, strict=True))
        prefix = ", ".join(_NAMED.get(c, "{}").format(chosen[c]) for c in varied)
        part = _of(table, chosen)
        mine = _crossing(_of(evidence.found.curves, chosen))
        mine += _strongest(part, _of(evidence.found.zones, chosen)) + _against_baseline(part)
        mine += _decay(_of(evidence.found.decay, chosen)) + _floor(part)
        rules = tuple(part["selector"].unique())
        sentences += [_capital(f"{prefix}: {s}" if prefix else s, rules) for s in mine]
    if len(conditions) > MOST_CONDITIONS:
        sentences.append(
            f"The other {len(conditions) - MOST_CONDITIONS} of {len(conditions)} conditions are in the tables only."
        )
    sentences += _effects(evidence.found.effects)
    sentences += _overlap(evidence.overlap) + _tokens(evidence.profile)
    documents = int(table["n"].max())
    if documents < MINIMUM_DOCUMENTS:
        many = f"{documents} document{'s' * (documents != 1)}"
        warning = f"With {many} nothing can be inferred: intervals and p-values need {MINIMUM_DOCUMENTS}."
        sentences.insert(0, f"{warning} What follows describes these documents only.")
    return sentences


def _capital(sentence: str, rules: tuple[str, ...]) -> str:
    """A capital at the start, except of a rule's name: that is written as it is typed."""
    return sentence if sentence.startswith(rules) else sentence[:1].upper() + sentence[1:]


def _of(frame: pd.DataFrame, chosen: dict[str, str]) -> pd.DataFrame:
    for column, value in chosen.items():
        if column in frame.columns:
            frame = frame[frame[column] == value]
    return frame


def _crossing(curves: pd.DataFrame) -> list[str]:
    """Where each rule's influence overtakes attention's, entropy first."""
    rules = curves["selector"].unique().tolist()
    if REFERENCE not in rules:
        return []
    others = sorted((r for r in rules if r != REFERENCE and not is_control(r)), key=lambda r: r != "entropy")
    sentences = []
    for row in crossovers(curves, [(rule, REFERENCE) for rule in others]).itertuples():
        ratios = controls(curves[curves["selector"].isin([row.rule, REFERENCE])], REFERENCE)
        ratios = ratios[(ratios["control"] == REFERENCE) & (ratios["selector"] == row.rule)]
        end = int(curves["high"].max()) - 1
        sentences.append(_crossing_sentence(row, bool((ratios["ratio"] < 1).all()), end))
    return sentences


def _crossing_sentence(row: object, never: bool, end: int) -> str:
    rule, distance, low, high = (getattr(row, name) for name in ("rule", "distance", "low", "high"))
    whose = f"{rule}'s influence"
    interval = ""
    if not math.isnan(low):
        upper = "beyond the range" if math.isinf(high) else tokens(high)
        interval = f" (95% interval: {tokens(low)} to {upper})" if not math.isinf(low) else ""
    if math.isnan(distance):
        return f"{whose} could not be set against {REFERENCE}'s ({getattr(row, 'reason', '')})."
    unsure = ", though that it never does is not excluded" if math.isinf(high) else ""
    if distance == 0:
        return f"{whose} exceeds {REFERENCE}'s throughout the range (0 to {end:,} tokens){unsure}{interval}."
    if math.isinf(distance):
        how = "does not exceed" if never else "does not come to exceed"
        tail = " at any distance within the range" if never else " for good within the range"
        return f"{whose} {how} {REFERENCE}'s{tail} (0 to {end:,} tokens){interval}."
    return f"{whose} exceeds {REFERENCE}'s from {tokens(distance)} tokens on{unsure}{interval}."


def _strongest(part: pd.DataFrame, zones: pd.DataFrame) -> list[str]:
    """The rule with the largest influence near and far, and the rules that cannot be told from it."""
    sentences = []
    words = {"near": "near the context", "far": "far from the context"}
    for zone, where in words.items():
        rows = part[part["zone"] == zone].dropna(subset=["kl"])
        if len(rows) < 2:
            continue
        top = rows.loc[rows["kl"].idxmax()]
        text = f"{where}, {top['selector']} has the largest influence: "
        text += say_with(top["kl"], top["kl_low"], top["kl_high"], " nats")
        if top["baseline"]:
            ratio = say_with(top["ratio"], top["ratio_low"], top["ratio_high"], "×")
            text += f", {ratio} {top['baseline']}'s"
        alike = _alike(zones[zones["zone"] == zone], str(top["selector"]))
        sentences.append(text + (f"; {join(alike)} cannot be told from it." if alike else "."))
    return sentences


def _alike(zone: pd.DataFrame, top: str) -> list[str]:
    """Rules whose ratio to `top` over documents has an interval that holds 1, with it."""
    found = []
    best = zone[zone["selector"] == top].set_index("document")["kl"]
    for rule, rows in zone[zone["selector"] != top].groupby("selector", sort=False):
        both = pd.concat([rows.set_index("document")["kl"], best], axis=1, join="inner").to_numpy()
        ratio = paired(both[:, 0], both[:, 1])
        if ratio.low <= 1 <= ratio.high:
            found.append(f"{rule} ({say_with(ratio.ratio, ratio.low, ratio.high, '×', digits=3)})")
    return found


def _against_baseline(part: pd.DataFrame) -> list[str]:
    """Which rules cannot be told from the baseline, and which fall below it, near and far."""
    sentences = []
    for zone in ("near", "far"):
        rows = part[(part["zone"] == zone) & (part["baseline"] != "") & part["ratio_low"].notna()]
        same = rows[(rows["ratio_low"] <= 1) & (rows["ratio_high"] >= 1)]
        below = rows[rows["ratio_high"] < 1]
        for group, text in ((same, "cannot be told from"), (below, "has less influence than")):
            for baseline, some in group.groupby("baseline", sort=False):
                each = [
                    f"{r.selector} ({say_with(r.ratio, r.ratio_low, r.ratio_high, '×', digits=3)})"
                    for r in some.itertuples()
                ]
                text = text.replace("has", "have") if len(each) > 1 else text
                sentences.append(f"in the {zone} zone, {join(each)} {text} {baseline}.")
    return sentences


def _decay(decay: pd.DataFrame) -> list[str]:
    rows = decay[decay["model"].notna() & ~decay["selector"].map(is_control)]
    rows = rows[rows["half_distance"].notna()].sort_values("half_distance")
    if len(rows) < 2:
        return []
    fast, slow = rows.iloc[0], rows.iloc[-1]
    return [
        f"{fast['selector']} fades fastest, {slow['selector']} slowest: beyond distance {HALF_FROM} their influence "
        f"halves within {_half(fast)} and {_half(slow)} tokens."
    ]


def _half(row: pd.Series) -> str:
    if math.isinf(row["half_distance"]):
        return "no number of"
    return say_with(row["half_distance"], row["half_low"], row["half_high"], digits=3)


def _floor(part: pd.DataFrame) -> list[str]:
    flagged = part[part["flags"].str.contains("under 3x the noise floor", regex=False)]
    if flagged.empty:
        return []
    which = [f"{rule} ({', '.join(rows['zone'])})" for rule, rows in flagged.groupby("selector", sort=False)]
    return [f"under three times the noise floor, and so not to be relied on: {join(which)}."]


def _effects(effects: pd.DataFrame) -> list[str]:
    """How much of the influence is direct, in the nearest and the farthest bin."""
    sentences = []
    whole = effects[~effects["selector"].map(is_control)] if len(effects) else effects
    several = [c for c in ("budget", "mode") if len(whole) and whole[c].nunique() > 1]
    for key, rows in list(whole.groupby(["selector", *several], sort=False))[:MOST_CONDITIONS] if len(whole) else []:
        rows = rows.sort_values("low")
        ends = [rows.iloc[0], rows.iloc[-1]]
        shares = [say_with(r["direct_share"], r["direct_share_low"], r["direct_share_high"]) for r in ends]
        where = [f"{int(r['low']):,} to {int(r['high']) - 1:,}" for r in ends]
        named = [_NAMED[c].format(v) for c, v in zip(several, key[1:], strict=True)]
        extra = f" at {', '.join(named)}" if several else ""
        sentences.append(
            f"The direct effect is {shares[0]} of {key[0]}'s total effect{extra} over {where[0]} tokens, and "
            f"{shares[1]} over {where[1]}."
        )
    return sentences


def _overlap(overlap: pd.DataFrame | None) -> list[str]:
    if overlap is None or overlap.empty:
        return []
    first = overlap.iloc[0]
    at = f" at budget {first['budget']}" if overlap["budget"].nunique() > 1 else ""
    pairs = overlap[(overlap["budget"] == first["budget"]) & (overlap["mode"] == first["mode"])]
    pairs = pairs[~pairs["rule_a"].map(is_control) & ~pairs["rule_b"].map(is_control)]
    if pairs.empty:
        return []
    least, most = pairs.loc[pairs["shared"].idxmin()], pairs.loc[pairs["shared"].idxmax()]
    sentences = []
    for row in [most] if len(pairs) == 1 else [most, least]:
        share = say_with(100 * row["shared"], 100 * row["shared_low"], 100 * row["shared_high"], "%")
        chance = say(100 * row["chance"])
        pair = f"{row['rule_a']} and {row['rule_b']}"
        sentences.append(f"{pair} share {share} of their budget{at} (chance alone would give {chance}%).")
    return sentences


def _tokens(profile: pd.DataFrame | None) -> list[str]:
    """The paper's observation, tested: function words against content words, rule by rule."""
    if profile is None or profile.empty:
        return []
    first = profile[(profile["budget"] == profile["budget"].iloc[0]) & (profile["mode"] == profile["mode"].iloc[0])]
    sentences = []
    for rule, rows in first[~first["selector"].map(is_control)].groupby("selector", sort=False):
        words = rows[(rows["division"] == "class") & rows["group"].isin(["function word", "content word"])]
        words = words[words["base"] > 0]
        if words.empty:
            continue
        lifts = [say_with(r.lift, r.low, r.high, "×", digits=3) for r in words.itertuples()]
        unclear = [r.low <= 1 <= r.high for r in words.itertuples()]
        each = [f"{group}s {lift}" for group, lift in zip(words["group"], lifts, strict=True)]
        if all(unclear):
            kinds = " or ".join(f"{group}s" for group in words["group"])
            sentences.append(f"{rule} shows no clear preference for {kinds} ({', '.join(lifts)} the base rate).")
            continue
        marked = [e + " (no clear preference)" * u for e, u in zip(each, unclear, strict=True)]
        sentences.append(f"{rule} selects {join(marked)} as often as the candidates hold them.")
    return sentences

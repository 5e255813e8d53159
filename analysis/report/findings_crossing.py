"""Sentences on crossovers: from where a rule's influence exceeds the reference's, and what the interval leaves open."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import interval, join, tokens
from forward_influence.analysis.measures.crossover import REFERENCE, bounds_text
from forward_influence.analysis.statistics.means import disagreement


def ratio_text(row: dict[str, Any] | pd.Series, digits: int = 3) -> str:
    """ "1.32× [1.08, 1.63]"."""
    return interval(row["ratio"], row["ratio_low"], row["ratio_high"], digits, "×")


def _bounds(row: dict[str, Any]) -> str:
    """The interval of a crossover in brackets; "" where there is none, or nothing but the estimate in it."""
    text = bounds_text(row["low"], row["high"])
    return f" (95% interval: {text})" if text else ""


def _apart(zones: dict[str, dict[str, Any]]) -> str:
    """Near and far ratios in words, of both means; those under the noise floor are said to be."""
    ends = [zone for zone in ("near", "far") if zone in zones]
    if not ends:
        return ""
    said = [f"{ratio_text(zones[z])} {z}{', under the noise floor' if zones[z]['flagged'] else ''}" for z in ends]
    of_means = [f"{_of_means(zones[z])} {z}" for z in ends if not math.isnan(zones[z].get("ratio_of_means", math.nan))]
    return f"; it is {join(said)}" + (f" (of arithmetic means: {join(of_means)})" if of_means else "")


def _of_means(zone: dict[str, Any]) -> str:
    value, low, high = (zone[f"ratio_of_means{end}"] for end in ("", "_low", "_high"))
    return interval(value, low, high, 3, "×")


def _disagreements(zones: dict[str, dict[str, Any]], what: str) -> str:
    """Where the two means disagree about the direction; "" where they do not."""
    found = {z: disagreement(row) for z, row in zones.items() if "ratio_of_means" in row and not row["flagged"]}
    said = [f"{zone} ({text})" for zone, text in found.items() if text]
    return f"{what} about the direction {join(said)}" if said else ""


def crossing_sentence(row: dict[str, Any], zones: dict[str, dict[str, Any]], what: str = "influence") -> str:
    """Whether and from where a rule's influence exceeds the reference's, and by how much near and far.

    Args:
        row: of `crossovers`; under `back`, if at hand, that of the reference over the rule.
        zones: of each zone `ratio`, `ratio_low`, `ratio_high` and `flagged`, rule over reference; `ratio_of_means` with
            its bounds, if at hand.
        what: what the KL is called.
    """
    whose = f"{row['rule']}'s {what}"
    if math.isnan(row["distance"]):
        return f"{whose} could not be set against {REFERENCE}'s ({row['reason']})."
    range_ = f"({tokens(row['first'])} to {tokens(row['last'])} tokens)"
    apart = _disagreements(zones, " The two means disagree")
    return f"{whose} {_from_where(row, range_)}{_apart(zones)}.{apart}{'.' if apart else ''}"


def _from_where(row: dict[str, Any], range_: str = "") -> str:
    """A crossover as a predicate, with what its interval leaves open.

    Args:
        range_: the distances looked at, in words, to be named where no crossing is seen among them.
    """
    distance, back = row["distance"], row.get("back")
    if math.isinf(distance) and back is not None and 0 < back["distance"] < math.inf and back["low"] > 0:
        text = f"exceeds {REFERENCE}'s up to {tokens(back['distance'])} tokens{_bounds(back)} and not beyond"
        return text + (f" {range_}" if range_ else "")
    within = " within the range" if range_ else ""
    if distance == 0:
        text = f"exceeds {REFERENCE}'s throughout{' the range' if range_ else ''}"
    elif math.isinf(distance):
        seen = "does not come" if math.isnan(row["low"]) or math.isinf(row["low"]) else "is not seen"
        text = f"{seen} to exceed {REFERENCE}'s{within}"
    else:
        text, range_ = f"exceeds {REFERENCE}'s from {tokens(distance)} tokens on", ""
    unsure = ""
    if math.isinf(distance) and row["low"] < math.inf:
        unsure = ", though that it does is not excluded"
    elif not math.isinf(distance) and math.isinf(row["high"]):
        unsure = ", though that it never does is not excluded"
    return f"{text}{f' {range_}' if range_ else ''}{_bounds(row)}{unsure}"


def crossing_clause(row: dict[str, Any], zones: dict[str, dict[str, Any]]) -> str:
    """The same in few words, as part of a sentence on several rules."""
    rule = row["rule"]
    if math.isnan(row["distance"]):
        return f"{rule} could not be set against it ({row['reason']})"
    far = ""
    if math.isinf(row["distance"]) and "far" in zones and not zones["far"]["flagged"]:
        far = f" ({ratio_text(zones['far'])} far)"
    return f"{rule}{far} {_from_where(row)}{_disagreements(zones, ', and the two means disagree')}"

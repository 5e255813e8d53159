"""Every rule against its controls, bins under the noise floor, and direct against indirect influence, by distance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.matrix import by_rule, matrix
from forward_influence.analysis.reading.pairing import (
    CONDITIONS,
    POSITION_MATCHED,
    RANDOM,
    align,
    baseline_for,
    position_control_for,
)
from forward_influence.analysis.statistics.inference import STUDENT, Estimate, Method, estimate, paired
from forward_influence.influence.noise_floor import FLAG_FACTOR

_RATIO = ["ratio", "ratio_low", "ratio_high", "n", "flagged", "reason"]


def controls(
    curves: pd.DataFrame, baseline: str = RANDOM, *, clustered: bool = False, method: Method = STUDENT
) -> pd.DataFrame:
    """Each rule as a multiple of random and of its position-matched control, per bin.

    Returns:
        Columns of `RULE`, then `control` ("random", say, or "position-matched"), `control_selector`, `same_grain`
        (whether both choose by entry, layer or token alike), `bin`, `low`, `high`, `distance`, `ratio` (geometric mean
        over documents of the ratios) with `ratio_low` and `ratio_high`, `n`, `flagged` (the rule's mean or the
        control's is under the noise-floor flag), `reason`.
    """
    rows: list[dict[str, Any]] = []
    for key, group in curves.groupby(CONDITIONS, sort=False):
        rules = {str(s): part for s, part in group.groupby("selector", sort=False)}
        named = dict(zip(CONDITIONS, key, strict=True))
        for selector, part in rules.items():
            found = {baseline: baseline_for(group, selector, baseline)}
            found[POSITION_MATCHED] = position_control_for(group, selector)
            for control, spec in found.items():
                if spec is None or spec == selector:
                    continue
                same = bool(part["per"].iloc[0] == rules[spec]["per"].iloc[0])
                about = {
                    **named,
                    "selector": selector,
                    "control": control,
                    "control_selector": spec,
                    "same_grain": same,
                }
                rows += [{**about, **line} for line in ratios(part, rules[spec], clustered=clustered, method=method)]
    columns = [*RULE, "control", "control_selector", "same_grain", "bin", "low", "high", "distance", *_RATIO]
    return pd.DataFrame(rows, columns=columns)


def ratios(
    a: pd.DataFrame,
    b: pd.DataFrame,
    *,
    clustered: bool = False,
    method: Method = STUDENT,
) -> list[dict[str, Any]]:
    """One rule as a multiple of another, per bin: the columns of `controls` from `bin` on, as dictionaries.

    Args:
        a, b: rows of one rule each, measured alike.
    """
    both = align(a, b)
    if both is None:
        return []
    first, second = both
    groups = first.clusters if clustered else None
    flagged = first.below_floor | second.below_floor
    rows = []
    for k, (low, high) in enumerate(zip(first.low, first.high, strict=True)):
        out = paired(first.kl[:, k], second.kl[:, k], groups, method=method, test=False)
        where = {"bin": k, "low": int(low), "high": int(high), "distance": (low + high - 1) / 2}
        values = {"ratio": out.ratio, "ratio_low": out.low, "ratio_high": out.high, "n": out.n, "reason": out.reason}
        rows.append({**where, **values, "flagged": bool(flagged[k])})
    return rows


def flags(curves: pd.DataFrame) -> pd.DataFrame:
    """Bins whose mean KL is below the noise-floor flag: columns of `RULE`, low, high, kl, floor, flagged."""
    pieces = []
    for key, group in by_rule(curves):
        curve = matrix(group)
        columns = {"low": curve.low, "high": curve.high, "kl": curve.geometric_mean}
        pieces.append(pd.DataFrame({**key, **columns, "floor": curve.floor, "flagged": curve.below_floor}))
    return pd.concat(pieces, ignore_index=True)


def floor_text(curves: pd.DataFrame, mark: str = "") -> str:
    """One line about the noise floor of a frame; `mark` is what flagged values bear."""
    floors = curves.groupby(["low", "effect"], sort=False)["floor"].mean().dropna()
    if floors.empty:
        return "noise floor: not measured, so that it is not taken off and no bin can be flagged"
    least, most = (f"{x:.1e}" for x in (floors.min(), floors.max()))
    shown = least if least == most else f"{least} to {most}"
    return f"noise floor: {shown} nats, taken off every mean; means below {FLAG_FACTOR:g} times it are flagged{mark}"


def matched_text(curves: pd.DataFrame) -> list[str]:
    """A line on each position-matched control: how much of its rule's choice it holds, which the multiple of it hides.

    Moving a choice about within short stretches leaves much of it in place where it was dense, and what both remove
    cannot tell them apart.
    """
    known = curves[curves["overlap"].notna()]
    per_document = known.groupby(["selector", "document"], sort=False)["overlap"].mean()
    means = per_document.groupby("selector", sort=False).mean()
    return [
        f"{control} holds {share:.0%} of what its rule chose, which pulls the multiple of it towards 1"
        for control, share in means.items()
    ]


def effects(curves: pd.DataFrame, *, clustered: bool = False, method: Method = STUDENT) -> pd.DataFrame:
    """Direct and indirect influence by distance, for rules measured with both effects; empty without such.

    Returns:
        Columns run, selector, budget, mode, layers, `bin`, `low`, `high`, `distance`; `direct_share` (geometric mean of
        direct / total) and `remainder_share` (1 - direct_share), `remainder` (mean of total - direct, nats:
        arithmetic, it can be negative), each with `_low` and `_high`; `n`, `flagged` (the direct or the total mean is
        under the noise-floor flag), `reason`.
    """
    rest = [name for name in RULE if name != "effect"]
    rows: list[dict[str, Any]] = []
    for key, group in curves.groupby(rest, sort=False):
        parts = {str(effect): part for effect, part in group.groupby("effect")}
        both = align(parts["direct"], parts["total"]) if {"direct", "total"} <= set(parts) else None
        if both is None:
            continue
        direct, total = both
        groups = direct.clusters if clustered else None
        flagged = direct.below_floor | total.below_floor
        for k, (low, high) in enumerate(zip(direct.low, direct.high, strict=True)):
            share = paired(direct.kl[:, k], total.kl[:, k], groups, method=method, test=False)
            difference = total.kl[:, k] - direct.kl[:, k]
            rest_of_it = estimate(difference, groups, scale="arithmetic", method=method)
            where = {"bin": k, "low": int(low), "high": int(high), "distance": (low + high - 1) / 2}
            rows.append(
                {
                    **dict(zip(rest, key, strict=True)),
                    **where,
                    **_bounds("direct_share", share.ratio, share.low, share.high),
                    **_bounds("remainder_share", 1 - share.ratio, 1 - share.high, 1 - share.low),
                    **spread("remainder", rest_of_it),
                    "n": share.n,
                    "flagged": bool(flagged[k]),
                    "reason": share.reason,
                }
            )
    named = [
        f"{name}{end}" for name in ("direct_share", "remainder_share", "remainder") for end in ("", "_low", "_high")
    ]
    return pd.DataFrame(rows, columns=[*rest, "bin", "low", "high", "distance", *named, "n", "flagged", "reason"])


def _bounds(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def spread(name: str, out: Estimate) -> dict[str, float]:
    """An estimate as three columns: name, name_low, name_high."""
    return _bounds(name, out.value, out.low, out.high)

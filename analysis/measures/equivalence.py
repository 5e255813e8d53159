"""Which rules are equal to the baseline within a margin, and which are only not told apart from it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import join
from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.pairing import RANDOM, beside_baseline
from forward_influence.analysis.statistics.equivalence import EQUAL_WITHIN, NOT_TOLD_APART, equivalence, percent
from forward_influence.analysis.statistics.inference import STUDENT, Method
from forward_influence.utils.distances import ZONES
from forward_influence.utils.margins import MARGIN, check_margin

_FOUND = ["ratio", "ratio_low", "ratio_high", "equal_low", "equal_high", "margin", "p_equal", "finding", "n", "flagged"]


def equivalences(
    zones: pd.DataFrame,
    baseline: str = RANDOM,
    margin: float = MARGIN,
    *,
    clustered: bool = False,
    method: Method = STUDENT,
) -> pd.DataFrame:
    """Each rule beside the baseline, near, middle and far: more, less, equal within the margin, or not told apart.

    Intervals are Student's t on logs whatever `method.kind` is, since the tests are.

    Args:
        zones: curves in zones, as `curves.load_zones` gives them.
        margin: above 1; ratios between 1 / margin and margin are equal.

    Returns:
        Columns of `RULE`, then `per`, `zone`, `baseline` (its spec), `ratio` with `ratio_low` and `ratio_high`,
        `equal_low` and `equal_high` (the interval that must lie within the margin: of 90% beside one of 95%), `margin`,
        `p_equal` (two one-sided tests), `finding` (in words; "" where there is no interval), `n`, `flagged` (one of the
        means is under the noise-floor flag), `reason`.

    Raises:
        UsageError: the margin leaves nothing, or too much, to be equal in.
    """
    check_margin(margin)
    rows: list[dict[str, Any]] = []
    for one in beside_baseline(zones, baseline):
        a, b = one.rule, one.control
        flagged = a.below_floor | b.below_floor
        for index, zone in enumerate(ZONES):
            found = equivalence(
                a.kl[:, index], b.kl[:, index], margin, a.clusters if clustered else None, level=method.level
            )
            rows.append(
                {
                    **one.about,
                    **{"zone": zone, "baseline": one.baseline, "ratio": found.ratio},
                    **{"ratio_low": found.low, "ratio_high": found.high},
                    **{"equal_low": found.equal_low, "equal_high": found.equal_high, "margin": margin},
                    **{"p_equal": found.p, "finding": found.in_words, "n": found.n},
                    **{"flagged": bool(flagged[index]), "reason": found.reason or ""},
                }
            )
    return pd.DataFrame(rows, columns=[*RULE, "per", "zone", "baseline", *_FOUND, "reason"])


def undecided(table: pd.DataFrame) -> list[str]:
    """Lines that tell equal rules from rules that are only not told apart; none where every rule is told apart.

    Args:
        table: as `equivalences` makes it.
    """
    lines = []
    for baseline, found in table[~table["flagged"].astype(bool)].groupby("baseline", sort=False):
        known = found[found["finding"] != ""]
        if known.empty:
            continue
        margin = percent(float(known["margin"].iloc[0]))
        open_ = _places(known[known["finding"] == NOT_TOLD_APART])
        equal = _places(known[known["finding"].str.startswith(EQUAL_WITHIN)])
        close = _places(known[known["finding"].str.contains("but equal")])
        said = []
        if equal:
            said.append(f"equal to {baseline} within {margin}: {equal}")
        if close:
            said.append(f"told apart from {baseline}, but by less than {margin}: {close}")
        if open_:
            said.append(f"not told apart from {baseline}, which is not the same as equal: {open_}")
        lines += said
    return lines


def _places(found: pd.DataFrame) -> str:
    """ "entropy near and far; infokv far"."""
    several = {name: found[name].nunique() > 1 for name in ("budget", "mode", "effect", "layers")}
    names = [name for name, differ in several.items() if differ]
    groups = found.groupby(["selector", *names], sort=False)
    words = []
    for key, part in groups:
        where = "".join(f", {name} {value}" for name, value in zip(names, key[1:], strict=True))
        words.append(f"{key[0]} {join(list(part['zone']))}{where}")
    return "; ".join(words)

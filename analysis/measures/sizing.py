"""How many documents a next study needs, from the spread between documents of a run that is there."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.pairing import RANDOM, beside_baseline
from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS, units
from forward_influence.analysis.statistics.power import (
    POWER,
    documents_for,
    power_of_difference,
    power_of_equivalence,
    smallest_found,
    upper_spread,
)
from forward_influence.errors import UsageError
from forward_influence.utils.distances import ZONES
from forward_influence.utils.margins import MARGIN

_SIZES = ["sd", "n", "smallest", "documents", "documents_safe", "equal_documents", "equal_documents_safe"]


def check_ratio(ratio: float) -> float:
    """A ratio to detect, as a factor above 1; one below 1 is taken as its inverse.

    Raises:
        UsageError: there is nothing to detect.
    """
    if not math.isfinite(ratio) or ratio <= 0 or ratio == 1:
        raise UsageError(f"`detect` {ratio:g} is no difference to detect; give a ratio like 1.2")
    return max(ratio, 1 / ratio)


def documents_needed(
    zones: pd.DataFrame,
    ratio: float,
    *,
    baseline: str = RANDOM,
    margin: float = MARGIN,
    power: float = POWER,
    clustered: bool = False,
) -> pd.DataFrame:
    """How many documents find a ratio to the baseline, and how many show equality, for each rule and zone of a run.

    Args:
        zones: curves in zones of a pilot run.
        ratio: to be found, by a two-sided paired t-test on logs at 5%.
        margin: within which rules that are equal are to be called so, by two one-sided tests at 5% each.
        power: with which.

    Returns:
        Columns of `RULE`, then `zone`, `baseline`, `sd` (of log ratios over documents), `n` (documents or clusters of
        the pilot), `smallest` (the smallest ratio that as many documents find), `documents` and `equal_documents` (at
        the spread as seen), `documents_safe` and `equal_documents_safe` (at its upper 80% limit); missing above a
        million.

    Raises:
        UsageError: the baseline was not measured, or there are fewer than 6 documents.
    """
    ratio = check_ratio(ratio)
    rows: list[dict[str, Any]] = []
    alpha = 1 - CONFIDENCE
    for one in beside_baseline(zones, baseline):
        a, b = one.rule, one.control
        for index, zone in enumerate(ZONES):
            x, y = a.kl[:, index], b.kl[:, index]
            if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
                continue  # no ratio there, which `compare` says
            logs = units(np.log(x) - np.log(y), a.clusters if clustered else None)
            n = len(logs)
            if n < MINIMUM_DOCUMENTS:
                raise UsageError(
                    f"a pilot of {n} documents does not tell how much documents differ; measure "
                    f"{MINIMUM_DOCUMENTS} or more"
                )
            sd = float(logs.std(ddof=1))
            safe = upper_spread(sd, n)
            found = [documents_for(partial(power_of_difference, math.log(ratio), s), power) for s in (sd, safe)]
            same = [documents_for(partial(power_of_equivalence, math.log(margin), s), power) for s in (sd, safe)]
            rows.append(
                {
                    **one.about,
                    **{"zone": zone, "baseline": one.baseline, "sd": sd, "n": n},
                    "smallest": math.exp(smallest_found(sd, n, power, alpha)),
                    **{"documents": found[0], "documents_safe": found[1]},
                    **{"equal_documents": same[0], "equal_documents_safe": same[1]},
                }
            )
    if not rows:
        raise UsageError(f"nothing was measured beside {baseline}; choose another with `baseline`")
    table = pd.DataFrame(rows, columns=[*RULE, "zone", "baseline", *_SIZES])
    return table.astype(dict.fromkeys(_SIZES[3:], "Int64"))

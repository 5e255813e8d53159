"""Whether one rule's influence fades faster than another's, tested within documents."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.pairing import align
from forward_influence.analysis.statistics.inference import STUDENT, Method, paired


def told_apart(
    fast: pd.DataFrame,
    slow: pd.DataFrame,
    *,
    comparisons: int = 1,
    clustered: bool = False,
    method: Method = STUDENT,
) -> bool:
    """Whether the first rule's far-to-near ratio is surely below the second's, over the documents that have both.

    The ratio of far to near influence asks nothing of the law by which a rule fades, so that rules of different laws
    can be compared; half-distances of different laws cannot.

    Args:
        fast, slow: rows of one rule each in near, middle and far.
        comparisons: pairs of rules that these two are the extremes of; the interval is made as wide as that asks for
            (Bonferroni).

    Returns:
        False too where near or far of either is under the noise-floor flag, or documents are too few.
    """
    both = align(fast, slow)
    if both is None or any(len(one.low) < 2 or one.below_floor[[0, -1]].any() for one in both):
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (one.kl[:, -1] / one.kl[:, 0] for one in both)
    groups = both[0].clusters if clustered else None
    return surely_below(first, second, groups, comparisons=comparisons, method=method)


def surely_below(
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    comparisons: int = 1,
    method: Method = STUDENT,
) -> bool:
    """Whether one positive quantity lies below another over documents (n,), its ratio's interval all below 1.

    Args:
        comparisons: pairs that these two were chosen from (Bonferroni).
    """
    return bool(paired(first, second, clusters, method=method.of_many(comparisons), test=False).high < 1)

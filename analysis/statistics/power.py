"""How many documents a finding takes: the power of the paired t-test and of equivalence, on log ratios.

The spread of documents comes from a pilot run, and is itself uncertain: the number of documents is given at the spread
as it was seen, and at its upper 80% confidence limit (Browne 1995, Statist. Med. 14:1933), with which a study that
follows has the power in four of five cases rather than in about half of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import integrate, stats

from forward_influence.analysis.statistics.inference import CONFIDENCE, MINIMUM_DOCUMENTS

#: What a study usually asks for.
POWER = 0.8
#: Confidence of the upper limit of the spread.
SAFE = 0.8
#: Beyond so many documents no number is given.
MOST_DOCUMENTS = 1_000_000


def power_of_difference(effect: float, sd: float, n: int, alpha: float = 1 - CONFIDENCE) -> float:
    """Chance that a two-sided paired t-test finds a mean difference, by the noncentral t distribution.

    Args:
        effect: the true mean, of logs: log(1.2) for a ratio of 1.2.
        sd: of the differences between documents.
        n: documents.
    """
    if sd == 0:
        return float(effect != 0)
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(effect) / sd * math.sqrt(n)
    below, above = stats.nct.cdf(-critical, n - 1, shift), stats.nct.sf(critical, n - 1, shift)
    return float(above) + (float(below) if math.isfinite(below) else 0.0)


def power_of_equivalence(margin: float, sd: float, n: int, alpha: float = 1 - CONFIDENCE) -> float:
    """Chance that two one-sided t-tests call two rules equal that are, exactly: over the distribution of the spread.

    Args:
        margin: of logs: log(1.1) for +-10%.
    """
    if sd == 0:
        return 1.0
    df, root = n - 1, math.sqrt(n)
    critical = stats.t.ppf(1 - alpha, df)
    widest = (margin * root / (critical * sd)) ** 2 * df  # of the chi-square; a larger spread never gives equality

    def at(square: float) -> float:
        room = margin * root / sd - critical * math.sqrt(square / df)
        return float((stats.norm.cdf(room) - stats.norm.cdf(-room)) * stats.chi2.pdf(square, df))

    middle = min(df, widest / 2)
    return float(
        integrate.quad(at, 0, middle)[0] + integrate.quad(at, middle, min(widest, stats.chi2.isf(1e-12, df)))[0]
    )


def documents_for(power: Callable[[int], float], wanted: float = POWER) -> int | None:
    """The fewest documents (6 at least) at which a power that rises with them is what is wanted.

    Returns:
        None beyond `MOST_DOCUMENTS`.
    """
    low, high = MINIMUM_DOCUMENTS, MINIMUM_DOCUMENTS
    while power(high) < wanted:
        if high >= MOST_DOCUMENTS:
            return None
        low, high = high + 1, min(2 * high, MOST_DOCUMENTS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle + 1, high)
    return high


def smallest_found(sd: float, n: int, power: float = POWER, alpha: float = 1 - CONFIDENCE) -> float:
    """The smallest mean of logs above 0 that n documents find with a power."""
    low, high = 0.0, 10 * sd
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of_difference(middle, sd, n, alpha) >= power else (middle, high)
    return high


def upper_spread(sd: float, n: int, confidence: float = SAFE) -> float:
    """The upper confidence limit of a standard deviation that n documents gave."""
    return sd * math.sqrt((n - 1) / float(stats.chi2.ppf(1 - confidence, n - 1)))

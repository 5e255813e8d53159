"""Numbers and lists as people read them: one notation within a cell, intervals in brackets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: What stands where there is no value.
ABSENT = "–"
#: Columns of a table that are shown only where they tell its rows apart.
VARYING = ("run", "budget", "mode", "effect", "layers")
#: From here down, and from there up, numbers are written with an exponent.
SMALL, LARGE = 1e-4, 1e6


def number(x: float | None, digits: int = 3, like: float | None = None) -> str:
    """A number with so many significant digits, in plain notation where that is short; "–" for NaN or None.

    Args:
        like: write it in the notation that this number would have.
    """
    if x is None or math.isnan(x):
        return ABSENT
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    if x == 0:
        return "0"
    mantissa, _, exponent = f"{x:.{digits - 1}e}".partition("e")
    if _has_exponent(x if like is None else like):
        return f"{mantissa}e{int(exponent)}"
    return f"{x:,.{max(digits - 1 - int(exponent), 0)}f}"  # as many decimals as the rounded number has: 1.00 for 0.9996


def _has_exponent(x: float) -> bool:
    return math.isfinite(x) and x != 0 and not SMALL <= abs(x) < LARGE


def interval(value: float, low: float, high: float, digits: int = 3, unit: str = "") -> str:
    """ "0.31 nats [0.25, 0.40]", bounds in the notation of the value; the value alone where there is no interval."""
    text = f"{number(value, digits)}{unit}"
    if math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{number(low, digits, value)}, {number(high, digits, value)}]"


def correlation(value: float, low: float, high: float) -> str:
    """ "0.31 [-0.02, 0.52]": two decimals, for digits behind the zeros of a correlation near 0 say nothing."""
    shown = [ABSENT if math.isnan(x) else f"{round(x, 2) + 0.0:.2f}" for x in (value, low, high)]  # + 0.0: no -0.00
    return shown[0] if ABSENT in shown[1:] else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def p_value(p: float) -> str:
    """A p-value with three decimals, "<0.001" below that."""
    if math.isnan(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def tokens(distance: float) -> str:
    """A distance in whole tokens; "beyond the range" for infinity."""
    return "beyond the range" if math.isinf(distance) else f"{distance:,.0f}"


def join(words: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def many(count: int, what: str) -> str:
    """ "1 document", "2 documents"."""
    return f"{count} {what}{'s' * (count != 1)}"


def varying_columns(frame: pd.DataFrame) -> list[str]:
    """Those of `VARYING` in which the rows of a frame differ."""
    return [name for name in VARYING if name in frame and frame[name].nunique() > 1]

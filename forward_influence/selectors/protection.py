"""How many of the last tokens are protected: so many, or a share of what is kept, so that it follows the budget.

A compressor that holds little would have nothing to choose if it always kept the last 64 tokens: whatever is asked, at
most half of what is kept is protected at the end.
"""

from __future__ import annotations

import math

from forward_influence.errors import UsageError

#: Attention sinks, and recent tokens, that are protected where nothing else is asked.
PROTECT_FIRST = 4
PROTECT_LAST = 64
#: The largest share of what is kept that can be protected at the end.
MOST_SHARE = 0.5


def parse_protected(written: str | int | float) -> int | float:
    """How many of the last tokens to protect: a count (no point), or a share of what is kept (with a point).

    Raises:
        UsageError: not a number, negative, or a share outside (0, 0.5].
    """
    text = str(written).strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"`protect_last` {text} is not a number; give a count like 64, or a share like 0.25")
    if value < 0:
        raise UsageError(f"`protect_last` {text} is negative; give 0 or more")
    if text.lstrip("+").isdigit():
        return int(value)  # of the float, for Python refuses to read whole numbers of over 4,300 digits
    if not 0 < value <= MOST_SHARE:
        raise UsageError(
            f"`protect_last` {text}: a share of what is kept is more than 0, at most {MOST_SHARE:g}; counts have none"
        )
    return value


def last_protected(asked: int | float, kept: int) -> int:
    """How many of the last tokens are protected where `kept` are kept: as asked, and at most half of them."""
    half = max(1, kept // 2)
    if isinstance(asked, int):
        return min(asked, half)
    return min(max(1, math.floor(asked * kept + 1e-9)), half)

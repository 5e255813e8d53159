"""Margins of equivalence: how close to 1 a ratio must be for two rules to be called equal."""

from __future__ import annotations

from forward_influence.errors import UsageError

#: Where none is named: a ratio between 1 / 1.1 and 1.1 is equal.
MARGIN = 1.1
#: A margin beyond this calls a rule equal to another of many times its influence.
WIDEST_MARGIN = 10.0


def check_margin(margin: float, name: str = "`margin`") -> float:
    """A margin as a factor: 1.1 calls a ratio between 1 / 1.1 and 1.1 equal.

    Args:
        name: what messages call it.

    Raises:
        UsageError: it leaves no room around 1, or far too much.
    """
    if not 1 < margin <= WIDEST_MARGIN:
        much = "too much room" if margin > WIDEST_MARGIN else "no room"
        raise UsageError(
            f"{name} {margin:g} leaves {much} to be equal in; give a factor above 1 and up to {WIDEST_MARGIN:g}, 1.1 "
            "for +-10%"
        )
    return margin

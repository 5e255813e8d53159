"""Numbers of entries that compressors hold, as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Numbers of entries that differ by less than this part are called equal: answers end between two compressions.
EQUAL = 0.01
#: How the column is headed that `held_cell` fills.
HEADING = "held = pinned + chosen"


def is_equal(one: float, other: float) -> bool:
    """Whether two numbers of entries are called equal; what is not known of is not called unequal."""
    return math.isnan(one) or math.isnan(other) or math.isclose(one, other, rel_tol=EQUAL)


def entries(count: float) -> str:
    """A number of entries, whole where it is."""
    return f"{count:,.0f}" if abs(count - round(count)) < 0.05 else f"{count:,.1f}"


def held_cell(row: Mapping[str, Any]) -> str:
    """ "96 = 52 + 44", "96 (all)" where nothing was removed, or "" where nothing is known of it.

    Args:
        row: with `held`, `pinned` and `chosen`.
    """
    if any(math.isnan(row[name]) for name in ("held", "pinned", "chosen")):
        return ""
    if row["chosen"] == 0 and row["pinned"] == row["held"]:
        return f"{entries(row['held'])} (all)"
    return f"{entries(row['held'])} = {entries(row['pinned'])} + {entries(row['chosen'])}"


def held_pair(one: float, other: float) -> str:
    """ "96", or "268 against 96" where two do not hold equally much; "" where nothing is known of them."""
    if math.isnan(one) or math.isnan(other):
        return ""
    return entries(one) if is_equal(one, other) else f"{entries(one)} against {entries(other)}"


def answer_cell(row: Mapping[str, Any]) -> str:
    """ "212 tokens, 8% at limit": the mean length of answers, and how many ran into their limit; "212 tokens" where
    that was not noted.

    Args:
        row: with `tokens` and `limited`.
    """
    length = f"{entries(row['tokens'])} tokens"
    return length if math.isnan(row["limited"]) else f"{length}, {row['limited']:.0%} at limit"


#: What an evaluation's `keep_prompt` says.
_PROTECTION = {
    "all": "every compressor keeps the prompt whole; budgets are of what is generated",
    "none": "no compressor keeps the prompt whole",
    "own": "each compressor keeps the prompt whole, or not, as its paper has it",
}


def protection(configuration: Mapping[str, Any]) -> str:
    """Whether prompts stay whole while answers grow, in words; "" where caches are compressed before the answer only.

    Args:
        configuration: of an evaluation; folders made before this could be chosen have none of it.
    """
    if configuration.get("every") is None:
        return ""
    return f"prompt: {_PROTECTION[configuration.get('keep_prompt', 'own')]}"

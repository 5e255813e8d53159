"""How much compressors hold, how much of that they choose, and where they are not compared at equal size.

Rows of rules that remove entries (drop mode) hold nothing in this sense: their columns are NaN, and nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.held_words import entries, is_equal
from forward_influence.analysis.formatting.wording import join
from forward_influence.analysis.reading.curves import RULE
from forward_influence.storage.shards import HELD

DEFINITION = (
    "held: entries per layer and head right after the last compression; pinned ones are kept whatever they score, the "
    "others are the rule's choice"
)


def held_by(frame: pd.DataFrame) -> dict[str, float]:
    """How many entries each selector of a frame holds, mean over documents; NaN of rules that remove entries.

    Args:
        frame: rows of rules measured under equal conditions.
    """
    return {str(name): float(mean) for name, mean in frame.groupby("selector", sort=False)["held"].mean().items()}


def against(held: Mapping[str, float], one: str, other: str) -> str:
    """ "holds 268 against 96 entries", or "" where both hold equally much.

    Args:
        held: from `held_by`.
    """
    if is_equal(held[one], held[other]):
        return ""
    return f"holds {entries(held[one])} against {entries(held[other])} entries"


def held_remark(frame: pd.DataFrame, selector: str, control: str) -> list[str]:
    """What it does to a multiple that the two do not hold equally much; nothing where they do."""
    text = against(held_by(frame), selector, control)
    return [f"{text} of {control}, not compared at equal size"] if text else []


def held_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What was held under each condition: a row per budget and selector, means over documents.

    Args:
        frame: curves, as `curves.read` gives them.

    Returns:
        Columns selector, budget, mode, layers, `curves.HELD`, and `ends` (first and last tokens pinned, or None); only
        rows that hold something.
    """
    rows = []
    some = frame[frame["held"].notna()]
    for (budget, mode, layers, selector), part in some.groupby(["budget", "mode", "layers", "selector"], sort=False):
        named = {"selector": selector, "budget": budget, "mode": mode, "layers": layers}
        means = {name: float(part[name].mean()) for name in HELD}
        rows.append({**named, **means, "ends": ends_of(part["parameters"].iloc[0])})
    return pd.DataFrame(rows, columns=["selector", "budget", "mode", "layers", *HELD, "ends"])


def with_held(
    table: pd.DataFrame, curves: pd.DataFrame, rule: str = "selector", other: str | None = None
) -> pd.DataFrame:
    """A table about rules with what each holds: `held`, `pinned` and `chosen`, and of another rule `other_held`.

    Args:
        table: with columns of `curves.RULE`, the selector in the column `rule`.
        curves: what the table was made from.
        other: the column that names the rule it is set against.
    """
    where = [name for name in RULE if name != "selector" and name in table]
    means = curves.groupby([*where, "selector"], sort=False, as_index=False)[["held", "pinned", "chosen"]].mean()
    made = table.merge(means.rename(columns={"selector": rule}), on=[*where, rule], how="left")
    if other is not None:
        of_other = means[[*where, "selector", "held"]].rename(columns={"selector": other, "held": "other_held"})
        made = made.merge(of_other, on=[*where, other], how="left")
    return made


def ends_of(parameters: str | None) -> tuple[int, int] | None:
    """How many of the first and of the last tokens were pinned, from a row's parameters; None where it does not say."""
    ends = json.loads(parameters or "{}").get("ends")
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int) for end in ends):
        return None
    return ends[0], ends[1]


def held_notes(table: pd.DataFrame) -> list[str]:
    """Lines for under a table of compressors: what held means, what was pinned, and where sizes are not equal.

    Args:
        table: from `held_table`.
    """
    if table.empty:
        return []
    conditions = list(table.groupby(["budget", "mode", "layers"], sort=False))
    several = len(conditions) > 1
    at = [f"at budget {key[0]} " if several else "" for key, _ in conditions]
    parts = [part for _, part in conditions]
    lines = [DEFINITION]

    def each(say: Callable[[pd.DataFrame], str]) -> str:
        said = [(where, say(part)) for where, part in zip(at, parts, strict=True)]
        return "; ".join(f"{where}{text}" for where, text in said if text)

    for say, line in (
        (_whole, "nothing was removed: {}"),
        (_most, "the most that was held between compressions, and at the end: {}"),
        (_pinned, "pinned: {}"),
        (unequal, "not at equal size: {} entries; `match_held` compares at equal numbers"),
        (
            mostly_pinned,
            "more than half of what is held is pinned, which mutes differences: {}; `protect_last` sets how many "
            "recent tokens are",
        ),
    ):
        if text := each(say):
            lines.append(line.format(text))
    return lines


def _whole(part: pd.DataFrame) -> str:
    """The compressors that hold all that was seen."""
    return ", ".join(str(row["selector"]) for row in part.to_dict("records") if row["pinned"] == row["held"])


def _most(part: pd.DataFrame) -> str:
    """The most that each compressor held, where that is more than after the last compression."""
    rows = [row for row in part.to_dict("records") if not is_equal(row["held_most"], row["held"])]
    return _grouped([(entries(row["held_most"]), row["selector"]) for row in rows])


def held_sentences(table: pd.DataFrame) -> list[str]:
    """Sentences on where compressors do not hold equally much, and where most of what they hold is no choice of theirs.

    Args:
        table: from `held_table`, of one condition.
    """
    said = []
    if sizes := unequal(table):
        said.append(
            f"compressors do not hold equally much here, so that they are not compared at equal size: {sizes} entries "
            "per layer and head; `match_held` compares at equal numbers."
        )
    if pinned := mostly_pinned(table):
        said.append(f"more than half of what is held is pinned, which mutes differences: {pinned}.")
    return said


def _pinned(part: pd.DataFrame) -> str:
    """Which tokens were pinned, each with its compressors."""
    known = [row for row in part.to_dict("records") if row["ends"] is not None]
    return _grouped([(f"the first {row['ends'][0]} and the last {row['ends'][1]}", row["selector"]) for row in known])


def unequal(part: pd.DataFrame) -> str:
    """ "rpc 268, infokv and random 96", or "" where all hold equally much.

    Args:
        part: rows of one condition, as `held_table` gives them.
    """
    held = [float(value) for value in part["held"]]
    if all(is_equal(one, other) for one in held for other in held):
        return ""
    groups: dict[str, list[str]] = {}
    for name, count in sorted(zip(part["selector"], held, strict=True), key=lambda pair: -pair[1]):
        groups.setdefault(entries(count), []).append(str(name))
    return ", ".join(f"{join(names)} {count}" for count, names in groups.items())


def mostly_pinned(part: pd.DataFrame) -> str:
    """ "29 of 50 (infokv, random)", or "" where no compressor has more pinned than chosen.

    Args:
        part: rows of one condition, as `held_table` gives them.
    """
    rows = [row for row in part.to_dict("records") if row["held"] / 2 < row["pinned"] < row["held"]]
    return _grouped([(f"{entries(row['pinned'])} of {entries(row['held'])}", row["selector"]) for row in rows])


def _grouped(pairs: Sequence[tuple[str, Any]]) -> str:
    """ "a (x, y), b (z)": each text with the names that it holds of."""
    groups: dict[str, list[str]] = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(str(name))
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())

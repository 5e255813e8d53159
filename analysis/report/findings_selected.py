"""What rules select, as sentences: how much of it they share, and what kind of words it is."""

from __future__ import annotations

import pandas as pd

from forward_influence.analysis.formatting.wording import interval, number
from forward_influence.analysis.reading.pairing import without_controls

#: More rules than these make a sentence unreadable; the table has them all.
MOST_RULES = 6


def of_overlap(summary: pd.DataFrame | None) -> list[str]:
    """The pairs of rules that share most and least, a sentence per run.

    Args:
        summary: from `overlap_summary`; None or empty without selections.
    """
    if summary is None or summary.empty:
        return []
    rules = without_controls(summary, "rule_a", "rule_b")
    sentences = []
    for run, mine in rules.groupby("run", sort=False):
        pairs, at = _first(mine)
        most, least = pairs.loc[pairs["shared"].idxmax()], pairs.loc[pairs["shared"].idxmin()]
        each = []
        for row in [most] if len(pairs) == 1 else [most, least]:
            share = interval(100 * row["shared"], 100 * row["shared_low"], 100 * row["shared_high"], 2, "%")
            each.append(
                f"{row['rule_a']} and {row['rule_b']} share {share} (by chance {number(100 * row['chance'], 2)}%)"
            )
        sentences.append(f"{_of(run, rules)}of their budget{at}, {'; '.join(each)}.")
    return sentences


def of_tokens(profile: pd.DataFrame | None) -> list[str]:
    """The paper's observation, tested: function words against content words, a sentence per run.

    Args:
        profile: from `token_profile`; None or empty without selections.
    """
    if profile is None or profile.empty:
        return []
    words = profile[(profile["division"] == "class") & profile["group"].isin(["function word", "content word"])]
    words = without_controls(words[words["base"] > 0])
    sentences = []
    for run, mine in words.groupby("run", sort=False):
        first, at = _first(mine)
        each = []
        for rule, rows in list(first.groupby("selector", sort=False))[:MOST_RULES]:
            lifts = [f"{r.group}s {interval(r.lift, r.low, r.high, 3, '×')}" for r in rows.itertuples()]
            each.append(f"{rule} {', '.join(lifts)}")
        left_out = first["selector"].nunique() - len(each)
        rest = f"; {left_out} more in the table" if left_out else ""
        sentences.append(
            f"{_of(run, words)}how often a kind of word is selected{at}, as a multiple of how often the candidates "
            f"hold it (1: no preference): {'; '.join(each)}{rest}."
        )
    return sentences


def _of(run: object, rows: pd.DataFrame) -> str:
    return f"{run}: " if rows["run"].nunique() > 1 else ""


def _first(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the first budget and mode, and what says so where there are others."""
    budget, mode = rows["budget"].iloc[0], rows["mode"].iloc[0]
    at = f" at budget {budget}" if rows["budget"].nunique() > 1 else ""
    return rows[(rows["budget"] == budget) & (rows["mode"] == mode)], at

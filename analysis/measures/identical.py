"""Rules that are one choice under two names: whatever they removed, every number that was measured is the same."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from forward_influence.analysis.formatting.wording import many
from forward_influence.analysis.reading.pairing import CONDITIONS

#: What has to be the same in every bin of every document.
_NUMBERS = ["measured", "nll_delta", "top1_changed"]


def identical_rules(fine: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rules whose results are equal bit for bit in every document, which takes the same selections.

    Removing other entries moves some prediction at least in its last bits, so that equal numbers at every distance of
    every document mean equal selections; that a rule changed nothing anywhere is no such finding and left out.

    Args:
        fine: curves in the narrowest bins, from `curves.read`.

    Returns:
        One row per pair and condition: columns of `CONDITIONS`, `rule_a`, `rule_b` (in the order measured) and
        `documents` (how many).
    """
    rows: list[dict[str, object]] = []
    for key, group in fine.groupby(CONDITIONS, sort=False):
        condition = dict(zip(CONDITIONS, key, strict=True))
        seen: dict[str, tuple[tuple[tuple[str, int], ...], bytes]] = {}
        for selector, part in group.groupby("selector", sort=False):
            ordered = part.sort_values(["document", "low"], kind="stable")
            numbers = np.ascontiguousarray(ordered[_NUMBERS].to_numpy(np.float64))
            if np.nan_to_num(numbers).any():
                places = tuple(zip(ordered["document"].astype(str), ordered["low"].astype(int), strict=True))
                seen[str(selector)] = places, numbers.tobytes()
        for a, b in combinations(seen, 2):
            if seen[a] == seen[b]:
                count = len({document for document, _ in seen[a][0]})
                rows.append({**condition, "rule_a": a, "rule_b": b, "documents": count})
    return pd.DataFrame(rows, columns=[*CONDITIONS, "rule_a", "rule_b", "documents"])


def with_flags(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A comparison's table whose column `flags` names, at every rule of a pair, the other one."""
    table = table.copy()
    for row in pairs.to_dict("records"):
        same = (table[CONDITIONS] == [row[name] for name in CONDITIONS]).all(axis=1)
        for one, other in ((row["rule_a"], row["rule_b"]), (row["rule_b"], row["rule_a"])):
            mine = same & (table["selector"] == one)
            flag = f"selects what {other} selects, in {_every(row['documents'])}"
            table.loc[mine, "flags"] = [f"{text}; {flag}" if text else flag for text in table.loc[mine, "flags"]]
    return table


def identical_notes(pairs: pd.DataFrame) -> list[str]:
    """A line per group of rules that are one choice, with the conditions under which they are."""
    about: dict[tuple[str, str, int], list[str]] = {}
    for row in pairs.to_dict("records"):
        where = f"{row['mode']} {row['budget']}" + ("" if row["effect"] == "total" else f", {row['effect']}")
        where += "" if row["layers"] == "all" else f", layers {row['layers']}"
        about.setdefault((str(row["rule_a"]), str(row["rule_b"]), int(row["documents"])), []).append(where)
    return [
        f"{a} and {b} select the same entries in {_every(documents)} ({'; '.join(where)}): one choice under two names"
        for (a, b, documents), where in about.items()
    ]


def _every(documents: int) -> str:
    return "the one document" if documents == 1 else f"all {many(documents, 'document')}"

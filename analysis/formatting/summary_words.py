"""The table that ends a measurement, as strings that people read: values with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.held_words import HEADING, held_cell
from forward_influence.analysis.formatting.wording import ABSENT, interval, number, varying_columns

_MEANS = {"near": "near", "middle": "middle", "far": "far", "far_near": "far / near"}
#: Multiples of controls, shown where there are any.
_CONTROLS = {
    "random_near": "x random, near",
    "random_far": "x random, far",
    "matched_near": "x matched, near",
    "matched_far": "x matched, far",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`measures.summary.summarise`'s means as strings with their intervals."""
    return _rows(table, lambda row: _intervals(row, _MEANS))


def multiples(table: pd.DataFrame) -> pd.DataFrame:
    """The same of the multiples of controls; without rules and controls that have none."""
    shown = {name: title for name, title in _CONTROLS.items() if table[name].notna().any()}
    some = table[table[list(shown)].notna().any(axis=1)] if shown else table[:0]
    return _rows(some, lambda row: _intervals(row, shown), like=table)


def _intervals(row: dict[str, Any], shown: Mapping[str, str]) -> dict[str, str]:
    return {title: interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2) for name, title in shown.items()}


def fidelity(table: pd.DataFrame) -> pd.DataFrame:
    """What stays the same where only the selected tokens are kept, as strings; without rows where nothing is."""

    def cells(row: dict[str, Any]) -> dict[str, str]:
        shown = {}
        for zone in ("near", "far"):
            shown[f"NLL shift, {zone}"] = number(row[f"nll_{zone}"], 2)
            shown[f"same top token, {zone}"] = f"{row[f'same_{zone}']:.1%}"
        return shown

    return _rows(table[table["mode"] == "keep"], cells)


def _rows(
    table: pd.DataFrame, cells: Callable[[dict[str, Any]], dict[str, str]], like: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A frame of strings: the rule, what tells its rows (those of `like`) apart, what it holds, and its cells."""
    whole = table if like is None else like
    varying = varying_columns(whole)
    holds = whole["held"].notna().any()
    rows = [
        {
            "rule": row["selector"],
            **{name: row[name] for name in varying},
            **({HEADING: held_cell(row) or ABSENT} if holds else {}),
            **cells(row),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)

"""The tables of a report: what is shown, and what each column sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from forward_influence.analysis.compare import Comparison
from forward_influence.analysis.findings import say, say_with

ABSENT = "–"
MOST_ROWS = 600


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what its column sorts by (empty: always last)."""

    text: str
    value: str
    kind: Literal["text", "number"]


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are compared as numbers."""

    label: str
    kind: Literal["text", "number"]


@dataclass(frozen=True)
class Table:
    """One sortable table; `name` is its id in the page."""

    name: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""


def words(text: Any) -> Cell:
    """A cell of text."""
    return Cell(str(text) if str(text) else ABSENT, str(text), "text")


def number(value: float, text: str | None = None, digits: int = 3) -> Cell:
    """A cell that sorts as a number."""
    known = value is not None and not math.isnan(value)
    shown = say(value, digits) if known else ABSENT
    return Cell(shown if text is None or not known else text, repr(float(value)) if known else "", "number")


def spread(row: Any, name: str, digits: int = 3) -> Cell:
    """A value with its interval; sorts by the value."""
    value = row[name]
    shown = ABSENT if math.isnan(value) else say_with(value, row[f"{name}_low"], row[f"{name}_high"], digits=digits)
    return number(value, shown.replace("beyond all bounds", "∞"), digits)


def table(name: str, title: str, frame: pd.DataFrame, maker: Callable[[Any], dict[str, Cell]], note: str = "") -> Table:
    """Make a table of a frame; columns that tell conditions apart (budget, mode ...) appear only where they vary."""
    varied = [c for c in ("budget", "mode", "effect", "layers") if c in frame and frame[c].nunique() > 1]
    if len(frame) > MOST_ROWS:
        note = f"{note} Only the first {MOST_ROWS} of {len(frame)} rows are shown; `compare` writes all.".strip()
        frame = frame.head(MOST_ROWS)
    rows, columns = [], []
    for row in frame.to_dict("records"):
        cells = maker(row)
        first = next(iter(cells))
        cells = {first: cells.pop(first), **{c: words(row[c]) for c in varied}, **cells}
        columns = [Column(label, cell.kind) for label, cell in cells.items()]
        rows.append(list(cells.values()))
    return Table(name, title, columns, rows, note)


def comparison_tables(found: Comparison) -> list[Table]:
    """The tables of a comparison that have rows."""
    note = "; ".join(found.notes[:4]) + "."
    made = [
        table("comparison", "Influence near, middle and far", found.table, _comparison, note),
        table("decay", "Decay with distance", found.decay, _decay),
        table("crossovers", "Crossovers: from where the rule's influence is the larger", found.crossovers, _cross),
        table("controls", "Multiple of the controls, by distance", found.controls, _controls),
        table("effects", "Direct and indirect influence, by distance", found.effects, _effects),
    ]
    return [one for one in made if one.rows]


def overlap_table(summary: pd.DataFrame) -> Table:
    """What `overlap_summary` gives, in percent."""
    note = "Candidates only; means over layers, then over documents. By chance: what independent choices would share."
    return table("overlap", "What rules share", summary, _overlap, note)


def token_table(profile: pd.DataFrame) -> Table:
    """What `token_profile` gives; groups without candidates left out."""
    note = "Multiple: how often the rule selects the group over how often the candidates hold it, mean over documents."
    return table("profile", "What kind of token is selected", profile[profile["base"] > 0], _token, note)


def _comparison(row: Any) -> dict[str, Cell]:
    order = {"near": "0 near", "middle": "1 middle", "far": "2 far"}
    return {
        "rule": words(row["selector"]),
        "zone": Cell(row["zone"], order[row["zone"]], "text"),
        "mean KL, nats [95%]": spread(row, "kl"),
        "ratio [95%]": spread(row, "ratio"),
        "to": words(row["baseline"]),
        "p (Holm)": number(row["p_holm"], "<0.001" if row["p_holm"] < 0.001 else None, 2),
        "effect size": number(row["rank_biserial"], digits=2),
        "wins": number(row["wins"] if row["baseline"] else math.nan, f"{row['wins']} of {row['n']}"),
        "remarks": words(row["flags"]),
    }


def _decay(row: Any) -> dict[str, Cell]:
    half = {"half": row["half_distance"], "half_low": row["half_low"], "half_high": row["half_high"]}
    return {
        "rule": words(row["selector"]),
        "law": words(row["model"] or ""),
        "exponent [95%]": spread(row, "exponent"),
        "length, tokens [95%]": spread(row, "length"),
        "half-distance, tokens [95%]": spread(half, "half"),
        "near share [95%]": spread(row, "near_share", 2),
        "far share [95%]": spread(row, "far_share", 2),
    }


def _cross(row: Any) -> dict[str, Cell]:
    distance = row["distance"]
    return {
        "rule": words(row["rule"]),
        "over": words(row["over"]),
        "overtakes it": Cell(row["text"], "" if math.isnan(distance) else repr(min(distance, 1e12)), "number"),
        "documents": number(row["n"]),
    }


def _where(row: Any) -> Cell:
    return number(row["low"], f"{row['low']}–{row['high'] - 1}")


def _controls(row: Any) -> dict[str, Cell]:
    return {
        "rule": words(row["selector"]),
        "control": words(row["control_selector"]),
        "distance": _where(row),
        "ratio [95%]": spread(row, "ratio"),
        "same grain": words("yes" if row["same_grain"] else "no"),
    }


def _effects(row: Any) -> dict[str, Cell]:
    return {
        "rule": words(row["selector"]),
        "distance": _where(row),
        "direct share [95%]": spread(row, "direct_share"),
        "indirect, nats [95%]": spread(row, "remainder"),
    }


def _overlap(row: Any) -> dict[str, Cell]:
    percent = {k: 100 * v for k, v in row.items() if k.startswith(("shared", "jaccard", "chance"))}
    return {
        "rule": words(row["rule_a"]),
        "and": words(row["rule_b"]),
        "budget shared, % [95%]": spread(percent, "shared"),
        "by chance, %": number(percent["chance"]),
        "Jaccard, % [95%]": spread(percent, "jaccard"),
        "rank correlation [95%]": spread(row, "rank_correlation", 2),
    }


def _token(row: Any) -> dict[str, Cell]:
    lift = {"lift": row["lift"], "lift_low": row["low"], "lift_high": row["high"]}
    return {
        "rule": words(row["selector"]),
        "division": words(row["division"]),
        "group": words(row["group"]),
        "multiple [95%]": spread(lift, "lift"),
        "selected, %": number(100 * row["share"]),
        "candidates, %": number(100 * row["base"]),
        "documents": number(row["documents"]),
    }

"""The tables of a report: what is shown, and what each column sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from forward_influence.analysis.formatting.held_words import HEADING, held_cell, held_pair
from forward_influence.analysis.formatting.wording import ABSENT, correlation, interval, p_value, varying_columns
from forward_influence.analysis.formatting.wording import number as written
from forward_influence.analysis.measures.compare import Comparison
from forward_influence.analysis.measures.selected import NOTES
from forward_influence.analysis.statistics.means import disagreement

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

    def of(self, what: str, key: str) -> Table:
        """The same, said to be about `what`; `key` keeps its id apart from others'."""
        return replace(self, name=f"{self.name}-{key}", title=f"{self.title}: {what}")


def words(text: Any) -> Cell:
    """A cell of text."""
    return Cell(str(text) if str(text) else ABSENT, str(text), "text")


def number(value: float, text: str | None = None, digits: int = 3) -> Cell:
    """A cell that sorts as a number."""
    known = value is not None and not math.isnan(value)
    shown = written(value, digits) if text is None or not known else text
    return Cell(shown, repr(float(value)) if known else "", "number")


def whole(value: float) -> Cell:
    """A count."""
    return number(value, f"{int(value):,}")


def spread(row: Any, name: str, digits: int = 3, mark: str = "") -> Cell:
    """A value with its interval; sorts by the value. `mark` follows a value that is flagged."""
    value = row[name]
    return number(value, interval(value, row[f"{name}_low"], row[f"{name}_high"], digits, mark), digits)


def marked(flagged: bool) -> str:
    """What a value bears that is under the noise-floor flag."""
    return "*" if flagged else ""


def table(name: str, title: str, frame: pd.DataFrame, maker: Callable[[Any], dict[str, Cell]], note: str = "") -> Table:
    """Make a table of a frame; columns that tell conditions apart (budget, mode ...) appear only where they vary."""
    varied = varying_columns(frame)
    if len(frame) > MOST_ROWS:
        note = f"{note} Only the first {MOST_ROWS} of {len(frame)} rows are shown; `compare` writes all.".strip()
        frame = frame.head(MOST_ROWS)
    rows, columns = [], []
    holds = "held" in frame and frame["held"].notna().any()
    for row in frame.to_dict("records"):
        cells = maker(row)
        first = next(iter(cells))
        held = _held(row) if holds else {}
        cells = {first: cells.pop(first), **{c: words(row[c]) for c in varied}, **held, **cells}
        columns = [Column(label, cell.kind) for label, cell in cells.items()]
        rows.append(list(cells.values()))
    return Table(name, title, columns, rows, note)


def _held(row: Any) -> dict[str, Cell]:
    """What a compressor holds; of two that are set against one another, what both do."""
    if "over" in row or "control_selector" in row:
        return {"held": number(row["held"], held_pair(row["held"], row["other_held"]) or ABSENT)}
    return {HEADING: number(row["held"], held_cell(row) or ABSENT)}


def comparison_tables(found: Comparison) -> list[Table]:
    """The tables of a comparison that have rows, each with what has to be said of it; the first with the rest too."""
    made = [
        ("table", "comparison", "Influence near, middle and far", found.table, _comparison),
        ("means", "means", "Geometric and arithmetic means over documents", found.table, _means),
        ("decay", "decay", "Decay with distance", found.decay, _decay),
        ("crossovers", "crossovers", "Crossovers: from where a rule's influence is larger", found.crossovers, _cross),
        ("controls", "controls", "Multiple of the controls, by distance", found.controls, _controls),
        ("effects", "effects", "Direct and indirect influence, by distance", found.effects, _effects),
    ]  # fmt: skip
    return [
        table(name, title, frame, maker, _note(found.notes_about([about], only=about != "table")))
        for about, name, title, frame, maker in made
        if len(frame)
    ]


def _note(lines: list[str]) -> str:
    return "; ".join(lines) + "." if lines else ""


def overlap_table(summary: pd.DataFrame) -> Table:
    """What `overlap_summary` gives, in percent."""
    return table("overlap", "What rules share", summary, _overlap, _note([NOTES["overlap"]]))


def overlap_layers_table(summary: pd.DataFrame) -> Table:
    """What `overlap_summary` gives layer by layer, in percent."""
    note = _note([NOTES["overlap_layers"]])
    return table("overlap-layers", "What rules share, layer by layer", summary, _overlap, note)


def token_table(profile: pd.DataFrame) -> Table:
    """What `token_profile` gives; groups without candidates left out."""
    frame = profile[profile["base"] > 0]
    return table("profile", "What kind of token is selected", frame, _token, _note([NOTES["tokens"]]))


def _comparison(row: Any) -> dict[str, Cell]:
    order = {"near": "0 near", "middle": "1 middle", "far": "2 far"}
    wins = math.nan if pd.isna(row["wins"]) else row["wins"]
    return {
        "rule": words(row["selector"]),
        "zone": Cell(row["zone"], order[row["zone"]], "text"),
        "mean KL, nats [95%]": spread(row, "kl", mark=marked(row["flagged"])),
        "ratio [95%]": spread(row, "ratio", mark=marked(row["ratio_flagged"])),
        "to": words(row["baseline"]),
        "p (Holm)": number(row["p_holm"], p_value(row["p_holm"])),
        "effect size": number(row["rank_biserial"], digits=2),
        "wins": number(wins, f"{row['wins']} of {row['n']}"),
        "remarks": words(row["flags"]),
    }


def _means(row: Any) -> dict[str, Cell]:
    cells, ratio_mark = _comparison(row), marked(row["ratio_flagged"])
    return {
        "rule": cells["rule"],
        "zone": cells["zone"],
        "geometric mean KL, nats [95%]": cells["mean KL, nats [95%]"],
        "arithmetic mean KL, nats [95%]": spread(row, "mean", mark=marked(row["flagged"])),
        "to": cells["to"],
        "geometric mean of ratios [95%]": cells["ratio [95%]"],
        "ratio of arithmetic means [95%]": spread(row, "ratio_of_means", mark=ratio_mark),
        "they disagree": words(disagreement(row)),
    }


def _decay(row: Any) -> dict[str, Cell]:
    half = {"half": row["half_distance"], "half_low": row["half_low"], "half_high": row["half_high"]}
    return {
        "rule": words(row["selector"]),
        "law": words("" if pd.isna(row["model"]) else row["model"]),
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
        "documents": whole(row["n"]),
    }


def _where(row: Any) -> Cell:
    return number(row["low"], f"{row['low']}–{row['high'] - 1}")


def _controls(row: Any) -> dict[str, Cell]:
    return {
        "rule": words(row["selector"]),
        "control": words(row["control_selector"]),
        "distance": _where(row),
        "ratio [95%]": spread(row, "ratio", mark=marked(row["flagged"])),
        "same grain": words("yes" if row["same_grain"] else "no"),
    }


def _effects(row: Any) -> dict[str, Cell]:
    mark = marked(row["flagged"])
    return {
        "rule": words(row["selector"]),
        "distance": _where(row),
        "direct share [95%]": spread(row, "direct_share", mark=mark),
        "indirect share [95%]": spread(row, "remainder_share", mark=mark),
        "indirect, nats [95%]": spread(row, "remainder", mark=mark),
    }


def _overlap(row: Any) -> dict[str, Cell]:
    ranked = [row[f"rank_correlation{end}"] for end in ("", "_low", "_high")]
    percent = {k: 100 * v for k, v in row.items() if k.startswith(("shared", "jaccard", "chance"))}
    return {
        "rule": words(row["rule_a"]),
        "and": words(row["rule_b"]),
        **({"layer": whole(row["layer"])} if "layer" in row else {}),
        "budget shared, % [95%]": spread(percent, "shared"),
        "by chance, %": number(percent["chance"]),
        "Jaccard, % [95%]": spread(percent, "jaccard"),
        "rank correlation [95%]": number(row["rank_correlation"], correlation(*ranked)),
        "documents": whole(row["n"]),
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
        "documents": whole(row["n"]),
    }

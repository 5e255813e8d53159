"""The tables that `compare` shows: their names, titles, and rows as people read them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from forward_influence.analysis.formatting.held_words import HEADING, held_cell, held_pair
from forward_influence.analysis.formatting.wording import correlation, varying_columns
from forward_influence.cli import tables
from forward_influence.cli.tables import interval, number, p_value

if TYPE_CHECKING:
    import pandas as pd


class Part(StrEnum):
    """Which of the tables to show."""

    comparison = "comparison"
    means = "means"
    decay = "decay"
    crossovers = "crossovers"
    controls = "controls"
    effects = "effects"
    overlap = "overlap"
    overlap_layers = "overlap-layers"
    tokens = "tokens"
    equivalence = "equivalence"
    mixed = "mixed"
    plan = "plan"

    @property
    def attribute(self) -> str:
        """What it is called where it is computed."""
        return "table" if self in (Part.comparison, Part.means) else self.name

    @property
    def about(self) -> str:
        """What notes call it."""
        return "table" if self is Part.comparison else self.name

    @property
    def of_selections(self) -> bool:
        """Whether it is made from saved selections."""
        return self in (Part.overlap, Part.overlap_layers, Part.tokens)

    @property
    def needs(self) -> str:
        """Why it can be empty."""
        return {
            Part.effects: "no rule was measured with both effects (--effect both)",
            Part.controls: "no rule was measured with a control",
            Part.equivalence: "no rule was measured beside the baseline",
            Part.mixed: "no rule was measured beside the baseline",
            Part.plan: "no run was measured under a plan (measure --plan)",
            Part.crossovers: "there are no two rules beside controls; choose a pair with --crossover",
        }.get(self, "no two rules of a run have saved selections")


TITLES = {
    Part.comparison: "Influence near, middle and far",
    Part.means: "Geometric and arithmetic means over documents",
    Part.decay: "Decay with distance: (d + 1) ** -exponent, or exp(-d / length), whichever AIC prefers",
    Part.crossovers: "Crossovers: the distance from which the first rule's influence exceeds the second's",
    Part.controls: "Multiple of the controls, by distance",
    Part.effects: "Direct and indirect influence, by distance",
    Part.overlap: "Overlap: what rules share of their budget",
    Part.overlap_layers: "Overlap layer by layer: what rules share of their budget",
    Part.tokens: "Tokens: where and what a rule selects",
    Part.equivalence: "More, less, equal, or not told apart",
    Part.mixed: "One mixed model of all distances",
    Part.plan: "The plan's questions, asked before the run",
}
#: What values bear that are under the noise-floor flag.
FLAG = "*"


def readable(frame: pd.DataFrame, part: Part, digits: int) -> pd.DataFrame:
    """One of the tables as strings, values with their intervals.

    Args:
        digits: significant digits of values; shares and correlations have two.
    """
    import pandas as pd

    maker = {
        Part.comparison: _comparison,
        Part.means: _means,
        Part.decay: _decay,
        Part.crossovers: _crossovers,
        Part.controls: _controls,
        Part.effects: _effects,
        Part.overlap: _overlap,
        Part.overlap_layers: _overlap,
        Part.tokens: _tokens,
        Part.equivalence: _equivalence,
        Part.mixed: _mixed,
        Part.plan: _plan,
    }[part]
    varying = varying_columns(frame)
    holds = "held" in frame and frame["held"].notna().any()
    rows = []
    for row in frame.to_dict("records"):
        cells = maker(row, digits)
        first = next(iter(cells))
        held = _held(row) if holds else {}
        rows.append({first: cells.pop(first), **{name: row[name] for name in varying}, **held, **cells})
    table = pd.DataFrame(rows)
    if part in (Part.comparison, Part.means):
        to = [spec for spec in table["to"].unique() if spec != tables.ABSENT]
        if len(to) == 1:  # one baseline for all: into the heading
            named = {
                "ratio [95%]": f"ratio to {to[0]} [95%]",
                "mean of ratios [95%]": f"mean of ratios to {to[0]} [95%]",
            }
            table = table.drop(columns="to").rename(columns=named)
    return table


def _held(row: dict[str, Any]) -> dict[str, str]:
    """What a compressor holds; of two that are set against one another, what both do."""
    if "over" in row or "control_selector" in row:
        return {"held": held_pair(row["held"], row["other_held"]) or tables.ABSENT}
    return {HEADING: held_cell(row) or tables.ABSENT}


def _with(row: dict[str, Any], name: str, digits: int, flagged: bool = False) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits, FLAG if flagged else "")


def _comparison(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "zone": row["zone"],
        "mean KL [95%]": _with(row, "kl", digits, row["flagged"]),
        "ratio [95%]": _with(row, "ratio", digits, row["ratio_flagged"] and bool(row["baseline"])),
        "to": row["baseline"] or tables.ABSENT,
        "p (Holm)": p_value(row["p_holm"]),
        "effect size": number(row["rank_biserial"], 2),
        "wins": f"{row['wins']}/{row['n']}" if row["baseline"] else tables.ABSENT,
    }


def _means(row: dict[str, Any], digits: int) -> dict[str, str]:
    compared = row["ratio_flagged"] and bool(row["baseline"])
    return {
        "rule": row["selector"],
        "zone": row["zone"],
        "geometric mean [95%]": _with(row, "kl", digits, row["flagged"]),
        "arithmetic mean [95%]": _with(row, "mean", digits, row["flagged"]),
        "to": row["baseline"] or tables.ABSENT,
        "mean of ratios [95%]": _with(row, "ratio", digits, compared),
        "ratio of means [95%]": _with(row, "ratio_of_means", digits, compared),
    }


def _decay(row: dict[str, Any], digits: int) -> dict[str, str]:
    law = {"power": _with(row, "exponent", digits), "exponential": _with(row, "length", digits)}
    return {
        "rule": row["selector"],
        "law": {"power": "exponent", "exponential": "length"}.get(row["model"], tables.ABSENT),
        "fitted [95%]": law.get(row["model"], tables.ABSENT),
        "half-distance [95%]": interval(row["half_distance"], row["half_low"], row["half_high"], digits),
        "near share [95%]": _with(row, "near_share", 2),
        "far share [95%]": _with(row, "far_share", 2),
    }


def _crossovers(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {"rule": row["rule"], "over": row["over"], "exceeds it": row["text"], "documents": str(row["n"])}


def _where(row: dict[str, Any]) -> str:
    return f"{row['low']}-{row['high'] - 1}"


def _controls(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "control": row["control_selector"],
        "distance": _where(row),
        "ratio [95%]": _with(row, "ratio", digits, row["flagged"]),
        "same grain": "yes" if row["same_grain"] else "no",
    }


def _effects(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "distance": _where(row),
        "direct share [95%]": _with(row, "direct_share", digits, row["flagged"]),
        "indirect share [95%]": _with(row, "remainder_share", digits, row["flagged"]),
        "indirect, nats [95%]": _with(row, "remainder", digits, row["flagged"]),
    }


def _overlap(row: dict[str, Any], digits: int) -> dict[str, str]:
    percent = {name: 100 * row[name] for name in row if name.startswith(("shared", "jaccard", "chance"))}
    return {
        "rule": row["rule_a"],
        "and": row["rule_b"],
        **({"layer": str(row["layer"])} if "layer" in row else {}),
        "shared, % [95%]": _with(percent, "shared", digits),
        "by chance, %": number(percent["chance"], digits),
        "Jaccard, % [95%]": _with(percent, "jaccard", digits),
        "rank correlation [95%]": correlation(*(row[f"rank_correlation{end}"] for end in ("", "_low", "_high"))),
    }


def _tokens(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "division": row["division"],
        "group": row["group"],
        "multiple [95%]": interval(row["lift"], row["low"], row["high"], digits),
        "selected, %": number(100 * row["share"], digits),
        "candidates, %": number(100 * row["base"], digits),
    }


def _equivalence(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "zone": row["zone"],
        "to": row["baseline"],
        "ratio [95%]": _with(row, "ratio", digits, row["flagged"]),
        "[90%]": interval(row["ratio"], row["equal_low"], row["equal_high"], digits).partition(" ")[2] or tables.ABSENT,
        "p (equal)": p_value(row["p_equal"]),
        "finding": row["finding"] or tables.ABSENT,
        "documents": str(row["n"]),
    }


def _mixed(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "rule": row["selector"],
        "to": row["baseline"],
        "at distance": number(row["distance"], 3),
        "ratio [95%]": _with(row, "ratio", digits),
        "per doubling [95%]": _with(row, "doubling", digits),
        "p (distance)": p_value(row["p_doubling"]),
        "sd of documents": number(row["sd_level"], 2),
        "documents": str(row["n"]),
    }


def _plan(row: dict[str, Any], digits: int) -> dict[str, str]:
    return {
        "question": f"{row['number']}. {row['question']}",
        "zone": row["zone"],
        "answer": f"{row['verdict']}: {row['because']}",
        "ratio [95%]": _with(row, "ratio", digits),
        "p (Holm)": p_value(row["p_holm"]),
    }

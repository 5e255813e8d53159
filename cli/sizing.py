"""`plan RUN --detect 1.2`: how many documents the next study needs, from a run that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forward_influence.analysis.formatting.wording import many, varying_columns
from forward_influence.cli import tables
from forward_influence.cli.reading import Equal, Reading
from forward_influence.utils.configuration import READING, Configuration, described, option

if TYPE_CHECKING:
    import pandas as pd


@described
@dataclass(frozen=True)
class Sought(Configuration):
    """What the next study is to find."""

    detect: float | None = option(
        None,
        "How many documents find this ratio to the baseline, 1.2 say, with 80% power.",
        READING,
        metavar="RATIO",
        shown="costs are predicted instead",
    )


def show_sizes(runs: Sequence[str], detect: float, reading: Reading, equal: Equal) -> None:
    """Print how many documents find a ratio, rule by rule, and what to type for that.

    Raises:
        UsageError: the runs cannot be read together, the ratio is none, or the baseline was not measured.
    """
    from forward_influence.analysis.measures.sizing import check_ratio, documents_needed
    from forward_influence.analysis.reading.comparable import check_comparable
    from forward_influence.analysis.reading.curves import load_zones
    from forward_influence.analysis.statistics.equivalence import percent
    from forward_influence.storage.run import open_run

    ratio = check_ratio(detect)
    opened = [open_run(folder) for folder in runs]
    check_comparable(opened)
    table = documents_needed(
        load_zones(opened, cluster=reading.cluster).assign(run=" + ".join(runs)),
        ratio,
        baseline=reading.baseline,
        margin=equal.margin,
        clustered=reading.cluster is not None,
    )
    within = percent(equal.margin)
    varying = varying_columns(table)
    shown = [_row(row, varying, f"{ratio:g}", within) for row in table.to_dict("records")]
    out = tables.console()
    tables.show(_frame(shown), "Documents needed, by the spread between the documents of this run", out)
    for line in (*_advice(table, ratio), *_notes(ratio, within)):
        out.print(line, markup=False, style="dim", soft_wrap=True)


def _row(row: dict[str, Any], varying: list[str], ratio: str, within: str) -> dict[str, str]:
    return {
        "rule": row["selector"],
        **{name: str(row[name]) for name in varying},
        "zone": row["zone"],
        "to": row["baseline"],
        "sd of log ratio": tables.number(row["sd"], 2),
        "documents": str(row["n"]),
        "smallest ratio found": tables.number(row["smallest"], 3),
        f"for {ratio}": _count(row["documents"]),
        f"for {ratio}, safe": _count(row["documents_safe"]),
        f"equal within {within}": _count(row["equal_documents"]),
        "equal, safe": _count(row["equal_documents_safe"]),
    }


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "over 1,000,000"


def _frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _advice(table: pd.DataFrame, ratio: float) -> list[str]:
    """What to measure so that the ratio is found of every rule and zone."""
    if table["documents"].isna().any():
        return []
    most, safe, n = (int(table[name].max()) for name in ("documents", "documents_safe", "n"))
    if most <= n:
        return [f"{many(n, 'document')}, as measured, find a ratio of {ratio:g} of every rule in every zone."]
    return [
        f"A ratio of {ratio:g} is found of every rule in every zone with {most} documents ({most - n} more), with "
        f"{max(safe, most)} to be safe: measure --max-documents {max(safe, most)}."
    ]


def _notes(ratio: float, within: str) -> list[str]:
    return [
        f"with 80% power, tests at 5%: a ratio of {ratio:g} (or its inverse) by a paired t-test on logs; equality "
        f"within {within} of rules that are equal by two one-sided tests",
        "safe: at the upper 80% limit of the spread, which a pilot knows only roughly",
    ]

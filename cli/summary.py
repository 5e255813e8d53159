"""The table that ends a measurement, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forward_influence.cli import tables

if TYPE_CHECKING:
    import pandas as pd

    from forward_influence.runs import Run


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`analysis.summary.summarise`'s table as strings: values with intervals, columns that say nothing left out."""
    import pandas as pd

    varying = [n for n in ("budget", "mode", "effect", "layers") if table[n].nunique() > 1]
    faithful = "keep" in set(table["mode"])  # what a compressor leaves is judged by what stays the same
    rows = []
    for row in table.to_dict("records"):
        cells: dict[str, Any] = {"rule": row["selector"], **{name: row[name] for name in varying}}
        for name, title in (("near", "near"), ("middle", "middle"), ("far", "far"), ("far_near", "far / near")):
            cells[title] = tables.interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2)
        for zone in ("near", "far") if faithful else ():
            cells[f"NLL shift, {zone}"] = tables.number(row[f"nll_{zone}"], 2)
            cells[f"same top token, {zone}"] = f"{row[f'same_{zone}']:.1%}"
        for zone in ("near", "far"):
            name = f"random_{zone}"
            cells[f"x random, {zone}"] = tables.interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2)
        rows.append(cells)
    out = pd.DataFrame(rows)
    return out if table["random_near"].notna().any() else out.drop(columns=["x random, near", "x random, far"])


def remarks(table: pd.DataFrame) -> list[str]:
    """What is flagged, each remark once with the rules that it is about."""
    about: dict[str, list[str]] = {}
    for row in table.to_dict("records"):
        for remark in filter(None, str(row["flags"]).split("; ")):
            if not remark.startswith("intervals need"):  # said once in the notes
                about.setdefault(remark, []).append(str(row["selector"]))
    return [f"{', '.join(dict.fromkeys(names))}: {remark}" for remark, names in about.items()]


def show_summary(run: Run) -> None:
    """Print the summary of a run: the table, its notes and its flags."""
    from forward_influence.analysis.summary import summarise

    table = summarise(run)
    out = tables.console()
    title = f"{run.name}: mean KL in nats [95% interval over documents]"
    out.print(tables.rich_table(readable(table), title, out.width))
    for line in [*table.attrs["notes"], *remarks(table)]:
        out.print(line, markup=False, style="dim", soft_wrap=True)

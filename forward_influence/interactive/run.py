"""A run that shows itself: summary, comparison, pictures, and the text with what was selected."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forward_influence.errors import UsageError, did_you_mean
from forward_influence.interactive.shown import Drawing, Marked, ReadableTable
from forward_influence.storage import run as stored

if TYPE_CHECKING:
    import pandas as pd


class Run(stored.Run):
    """A run folder in Python: everything that `forward_influence.storage.run.Run` reads, and what it looks like."""

    @classmethod
    def of(cls, run: stored.Run) -> Run:
        """The same run, to look at."""
        return cls(run.folder, run.manifest, run.mirror)

    def frame(self) -> pd.DataFrame:
        """Mean influence by document, to read and to compute with.

        Returns:
            A row per document, rule (`selector`), budget, mode and effect: `near`, `middle`, `far` in nats, means over
            the positions of each zone, draws and segments, the noise floor taken off. The values of every position are
            in `curves()`.

        Raises:
            ForwardInfluenceError: nothing is measured yet.
        """
        from forward_influence.analysis.reading.curves import load_zones

        zones = load_zones(self)
        keys = ["document", "selector", "budget", "mode", "effect"]
        table = zones.pivot_table(index=keys, columns="zone", values="kl", sort=False, observed=True)
        return table[["near", "middle", "far"]].rename_axis(columns=None).reset_index()

    def summary(self) -> ReadableTable:
        """The table that ends a measurement: every rule's influence near, middle and far, with intervals.

        Raises:
            ForwardInfluenceError: nothing is measured yet.
        """
        from forward_influence.analysis.formatting.summary_words import multiples, readable
        from forward_influence.analysis.formatting.wording import ABSENT
        from forward_influence.analysis.measures.notes import flag_remarks
        from forward_influence.analysis.measures.summary import summarise

        values = summarise(self)
        shown, compared = readable(values), multiples(values)
        if len(compared):
            shown = shown.merge(compared, how="left").fillna(ABSENT)
        title = f"{self.name}: mean KL in nats [95% interval over documents]"
        return ReadableTable(title, shown, values, [*values.attrs["notes"], *flag_remarks(values)])

    def compare(self, baseline: str = "random", **options: Any) -> ReadableTable:
        """Every rule's influence as a multiple of a baseline's on the same documents.

        Args:
            options: as `forward_influence.analysis.measures.compare.compare` takes them.

        Raises:
            UsageError: the baseline was not measured.
        """
        from forward_influence.analysis.formatting.wording import interval
        from forward_influence.analysis.measures.compare import compare

        found = compare(self, baseline, **options)
        values = found.table
        shown = values.assign(
            **{
                f"ratio to {baseline} [95%]": [
                    interval(row.ratio, row.ratio_low, row.ratio_high, 2) for row in values.itertuples()
                ]
            }
        )
        columns = ["selector", "budget", "zone", "n", shown.columns[-1]]
        kept = shown[shown["ratio"].notna()][columns].rename(columns={"selector": "rule", "n": "documents"})
        return ReadableTable(
            f"{self.name}: influence as a multiple of {baseline}'s", kept, values, found.notes_about(["table"])
        )

    def plot(self, kind: str = "decay", **options: Any) -> Drawing:
        """One picture of the run.

        Args:
            kind: decay, ratio, nearfar, crossover, overlap, layers, positions, tokens.
            options: fields of `forward_influence.analysis.plots.data.PlotData`: selectors, budgets, baseline, width ...

        Raises:
            UsageError: an unknown kind, or the run does not hold what it needs.
        """
        from forward_influence.analysis.plots.data import PlotData
        from forward_influence.analysis.plots.registry import draw, kind_of

        found = kind_of(kind)
        return Drawing(draw(found.name, PlotData([self], **options)), f"{self.name}: {found.summary}")

    def show(self, selector: str | None = None, document: int = 0) -> Marked:
        """The text of a document's context with what a rule selected.

        Args:
            selector: as measured; the run's first without one.
            document: which of the run's, from 0.

        Raises:
            UsageError: no selections were saved (`save_selections=True` in the request), or there is no such rule or
                document.
        """
        from forward_influence.analysis.reading.selections import read_selections, require_selections

        require_selections(self, "showing them")
        documents = list(read_selections(self))
        if not 0 <= document < len(documents):
            raise UsageError(f"`document` {document} is not there; the run has {len(documents)}, the first is 0")
        found = documents[document]
        names = list(dict.fromkeys(choice.selector for choice in found.choices))
        name = selector or names[0]
        choice = next((c for c in found.choices if c.selector == name), None)
        if choice is None:
            raise UsageError(f"{name} was not measured{did_you_mean(name, names)}; there are {', '.join(names)}")
        verb = "keeps" if choice.mode == "keep" else "drops"
        title = f"{found.document['name']}: what {name} {verb} at a budget of {choice.budget}"
        return Marked(title, found.contexts[choice.segment].pieces, choice.selection.mean((0, 1)).tolist())

    def report(self, out: str | os.PathLike[str], **options: Any) -> Path:
        """Write the report, one HTML file to send to a colleague.

        Args:
            options: as `forward_influence.analysis.report.page.report` takes them.

        Raises:
            OSError: it cannot be written there.
        """
        from forward_influence.analysis.report.page import report

        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report([self], **options).html, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        asked = self.configuration
        rules = ", ".join([*asked.get("selectors", []), *asked.get("compressors", [])])
        return f"Run({self.where!r}: {len(self.documents)} documents, {asked.get('model')}, {rules})"

    def _repr_html_(self) -> str:
        asked = self.configuration
        rows = {
            "folder": self.where,
            "model": asked.get("model"),
            "documents": len(self.documents),
            "rules": ", ".join([*asked.get("selectors", []), *asked.get("compressors", [])]),
            "budget": ", ".join(asked.get("budgets", [])),
            "tokens": f"{asked.get('context')} + {asked.get('continuation')}",
        }
        left = "style='text-align:left'"
        cells = "".join(
            f"<tr><th {left}>{name}</th><td {left}>{html.escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        return f"<table>{cells}</table><p>summary(), compare(), plot(), show(), report()</p>"


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open a run to look at it: a folder, or an address like s3://bucket/run, which is mirrored first.

    Raises:
        UsageError: there is no run there, or its manifest is unreadable or of an unknown schema.
    """
    return Run.of(stored.open_run(folder))

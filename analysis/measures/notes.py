"""The lines under the tables of a comparison: what a number is, what it rests on, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from forward_influence.analysis.formatting.wording import many
from forward_influence.analysis.measures.controls import floor_text
from forward_influence.analysis.measures.decay import HALF_FROM
from forward_influence.analysis.measures.identical import identical_notes
from forward_influence.analysis.measures.span_words import zones_by_spans
from forward_influence.analysis.measures.summary import candidate_lines, control_lines, documents_text, holding_lines
from forward_influence.analysis.reading.binning import FINE_SHARE
from forward_influence.analysis.reading.held import held_notes, held_table
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS, Method
from forward_influence.analysis.statistics.means import WHICH, disagreements
from forward_influence.storage.run import Run
from forward_influence.utils.distances import ZONES

#: The coverage is measured by benchmarks/statistics_coverage.py.
BOOTSTRAP_NOTE = (
    "intervals: 95%, bootstrap over documents (expanded percentiles); measured coverage with log-normal effects: "
    "93% at 6 documents, 95% at 12 and 24 (docs/statistics.md)"
)
T_NOTE = "intervals: 95%, Student t over documents, on logs of means and ratios"
BCA_NOTE = (
    "intervals of arithmetic means: 95%, BCa bootstrap over documents, widened for few of them; measured coverage of "
    "ratios: 91% to 94%, of means of very skewed documents down to 85% at 6 of them (docs/statistics.md)"
)
#: Tables whose intervals are made as asked for.
_BY_RULE = ("table", "means", "decay", "controls", "effects")
#: Tables in which geometric and arithmetic means are told apart.
MEANS = ("table", "means")


@dataclass(frozen=True)
class Note:
    """A line, and the tables of a `Comparison` that it is about; about all without any."""

    text: str
    tables: tuple[str, ...] = ()

    def concerns(self, tables: Collection[str]) -> bool:
        """Whether it belongs under any of these tables."""
        return not self.tables or any(name in self.tables for name in tables)


def comparison_notes(
    measured: Sequence[tuple[Run, int]],
    table: pd.DataFrame,
    zones: pd.DataFrame,
    decay: pd.DataFrame,
    crossovers: pd.DataFrame,
    *,
    finest: int,
    twice: bool,
    cluster: str | None,
    method: Method,
    alike: pd.DataFrame,
) -> list[Note]:
    """What to say under the tables of a comparison.

    Args:
        measured: each run and how many of its documents were read.
        table, zones, decay, crossovers: as in `Comparison`.
        finest: positions in the narrowest bin that crossovers were sought in.
        twice: whether several runs measured a rule on one document.
        cluster: the field of the documents whose groups are the unit.
        alike: rules that are one choice, from `identical.identical_rules`.
    """
    edges = zones.groupby("bin")[["low", "high"]].first()
    where = ", ".join(f"{zone} {low} to {high - 1}" for zone, (low, high) in zip(ZONES, edges.to_numpy(), strict=True))
    by_spans = measured[0][0].configuration.get("measure_on") is not None
    where = zones_by_spans(measured[0][0]) if by_spans else f"{where} tokens"
    means = f"mean KL in nats, geometric mean over documents, and per-document ratios to the baseline; {where}"
    half = f"half-distance: tokens beyond distance {HALF_FROM} until the fitted curve has halved"
    ratios = "ratio: geometric mean over documents of the rule's influence as a multiple of the control's"
    shares = "direct share: geometric mean of direct / total; indirect: mean of total - direct"
    holm = "with 6 documents no Holm-corrected p can fall below 0.09: read the intervals and effect sizes"
    notes = [
        Note(means, ("table",)),
        Note(WHICH, MEANS),
        Note(BCA_NOTE, ("means",)),
        *(Note(text, MEANS) for text in disagreements(table)),
        Note("p: Wilcoxon signed-rank on log ratios, Holm over near, middle and far of each rule", ("table",)),
        Note("effect size: matched-pairs rank-biserial correlation, -1 to 1", ("table",)),
        Note(f"{half}; shares: of all influence, {where}", ("decay",)),
        *(Note(text, ("decay",)) for text in _reasons(decay, "no decay fitted")),
        *(Note(text, ("crossovers",)) for text in _reasons(crossovers, "")),
        Note(ratios, ("controls",)),
        Note(shares, ("effects",)),
        Note(BOOTSTRAP_NOTE if method.kind == "bootstrap" else T_NOTE, _BY_RULE),
        Note(crossover_note(finest), ("crossovers",)),
        *(Note(text) for text in identical_notes(alike)),
        *(Note(text) for text in holding_lines([run for run, _ in measured])),
        *(Note(text) for text in candidate_lines(measured[0][0], zones)),
        *(Note(text) for text in held_notes(held_table(zones))),
        Note(floor_text(zones, " (*)")),
        *(Note(text, ("table", "controls")) for text in control_lines(zones)),
    ]
    if twice:
        notes.append(Note("rules that several of the runs measured on a document are averaged over these runs"))
    for run, count in measured:
        notes.append(Note((f"{run.where}: " if len(measured) > 1 else "") + documents_text(run, count)))
    units = zones["cluster"].nunique()
    if cluster is not None:
        notes.append(
            Note(f"unit: {cluster} ({many(units, 'group')} of {many(zones['document'].nunique(), 'document')})")
        )
    if units < MINIMUM_DOCUMENTS:
        inference = f"they need {MINIMUM_DOCUMENTS} documents (or clusters), not {units}"
        notes.append(Note(f"no intervals and no p-values: {inference}"))
    elif units < MINIMUM_DOCUMENTS + 1:
        notes.append(Note(holm, ("table",)))
    return notes


def crossover_note(finest: int) -> str:
    """What a crossover is, and how far its interval can be trusted.

    Args:
        finest: positions in the narrowest bin.
    """
    return (
        "crossovers: from where on, up to the end, the first rule's influence is larger; intervals: at least 95%, by "
        f"Student's t over documents at every cut between bins of {finest} positions ({FINE_SHARE:.0%} of the distance "
        "where that is more), to which they are precise"
    )


def _reasons(frame: pd.DataFrame, what: str) -> list[str]:
    """Why rows lack something, each reason once with its rules; that documents are too few is said elsewhere."""
    about: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        missing = pd.isna(row["model"]) if "model" in row else True
        reason = "" if pd.isna(row["reason"]) else str(row["reason"])
        if missing and reason and not reason.startswith("intervals need"):
            name = row["selector"] if "selector" in row else f"{row['rule']} over {row['over']}"
            about.setdefault(reason, []).append(name)
    return [
        f"{', '.join(dict.fromkeys(names))}: {what + ', ' if what else ''}{reason}" for reason, names in about.items()
    ]


def flag_remarks(table: pd.DataFrame) -> list[str]:
    """The `flags` of a table, each remark once with its rules; that documents are too few is said elsewhere."""
    about: dict[str, list[str]] = {}
    for row in table.to_dict("records"):
        for remark in filter(None, str(row["flags"]).split("; ")):
            if not remark.startswith("intervals need"):
                about.setdefault(remark, []).append(str(row["selector"]))
    return [f"{', '.join(dict.fromkeys(names))}: {remark}" for remark, names in about.items()]

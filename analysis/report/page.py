"""A report to send to a colleague: one HTML file with findings, pictures, tables, and the text that rules select."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from forward_influence.analysis.formatting import style
from forward_influence.analysis.measures.compare import Comparison, compare
from forward_influence.analysis.measures.overlap import overlap_summary
from forward_influence.analysis.measures.spans import has_spans
from forward_influence.analysis.measures.summary import unfinished
from forward_influence.analysis.plots import registry
from forward_influence.analysis.plots.common import TooManyPanels
from forward_influence.analysis.plots.data import PlotData
from forward_influence.analysis.reading import comparable
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.pairing import RANDOM, variants
from forward_influence.analysis.report import about as report_about
from forward_influence.analysis.report import tables as report_tables
from forward_influence.analysis.report.findings import Evidence, Findings, findings
from forward_influence.analysis.report.findings_planned import of_plans, planned_first
from forward_influence.analysis.report.token_view import TokenView, token_view
from forward_influence.analysis.statistics.inference import Kind
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run

#: Most bytes of a report; the token view takes what the rest leaves.
LIMIT = 5_000_000
_READING = (
    "Influence is the KL divergence (nats) between the model's next-token predictions with and without the selected "
    "entries of its KV cache, or, where only these are kept, without all others. Brackets are 95% "
    "intervals; the document is the unit."
)


@dataclass(frozen=True)
class Picture:
    """An inline picture: its markup and caption, and whether it is wider than a column of text."""

    svg: Markup
    caption: str
    wide: bool


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        html: the whole page.
        findings: its key findings, in groups.
        notes: what is not measured yet, what was left out, and why.
    """

    html: str
    findings: list[Findings]
    notes: list[str]

    @property
    def sentences(self) -> list[str]:
        """All key findings in a row."""
        return [sentence for group in self.findings for sentence in group.sentences]


@dataclass(frozen=True)
class _Group:
    """Runs that can be compared with one another, by the names that they have in the report, and what was found."""

    names: list[str]
    found: Comparison

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows about these runs."""
        return frame if frame.empty else frame[frame["run"].isin(self.names)]


def report(
    runs: Sequence[Run],
    *,
    baseline: str = RANDOM,
    budgets: Sequence[str] = (),
    cluster: str | None = None,
    method: Kind = "t",
    limit: int = LIMIT,
    title: str | None = None,
    wording: Callable[[str], str] = str,
) -> Report:
    """Write a report on one or several runs; those that cannot be compared stand side by side.

    Args:
        baseline: the rule that the others are set against; where `random` was not measured, the first rule is taken.
        budgets: only these.
        cluster: field of the documents whose groups are the unit.
        method: how intervals are made.
        limit: most bytes of the page.
        wording: what becomes of texts that name fields in backticks; the command line makes options of them.

    Raises:
        UsageError: the baseline or a budget was not measured, or documents have no such field.
        ForwardInfluenceError: nothing is measured yet.
    """
    by_name = named(runs)
    options: dict[str, Any] = {"budgets": tuple(budgets), "cluster": cluster, "method": method}
    data = PlotData(runs, **options)
    groups = [_group(group, by_name, data, baseline, options) for group in comparable.groups(runs)]
    data = PlotData(runs, baseline=_baseline(data.rules, baseline), read=data.frames, **options)
    tables = _Selected(data)
    pictures, not_drawn = _pictures(data)
    told = [part for group in groups for part in _findings(group, tables, len(groups) > 1)]
    told = planned_first(of_plans(by_name, data.frames.zones, cluster), told)
    missing = [*unfinished(by_name, data.frames.zones), *_side_by_side(groups, by_name)]
    page: dict[str, Any] = {
        "title": title or f"Forward Influence: {', '.join(by_name)}",
        "subtitle": report_about.subtitle(runs),
        "missing": missing,
        "findings": told,
        "reading": f"{_READING} {_means(groups)}",
        "pictures": pictures,
        "not_drawn": not_drawn,
        "tables": [*_tables(groups, data), report_about.documents(by_name)],
        "runs": [report_about.about(run, name) for name, run in by_name.items()],
        "made": f"Made by forward-influence {report_about.made_by(runs)} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    }
    without = _render({**page, "token_view": None}, wording)
    view = token_view(data.selecting, limit - len(without.encode()) - 5_000)
    html = _render({**page, "token_view": None if view is None else _view(view)}, wording)
    return Report(html, told, [*missing, *([] if view is None else view.notes)])


class _Selected:
    """What rules select, empty where no run saved selections (or, of pairs, measured two rules)."""

    def __init__(self, data: PlotData) -> None:
        pairs = bool(data.selecting) and len(data.wanted_rules) > 1
        nothing = pd.DataFrame()
        self.overlap = overlap_summary(data.overlap, **data.inference) if pairs else nothing
        self.profile = data.profile if data.selecting else nothing


def _group(
    group: list[Run], by_name: Mapping[str, Run], data: PlotData, baseline: str, options: dict[str, Any]
) -> _Group:
    names = [name for name, run in by_name.items() if any(run is one for one in group)]
    rows = data.frames.where(lambda frame: frame["run"].isin(names))
    rules = [str(s) for s in rows.even["selector"].unique()]
    return _Group(names, compare(group, _baseline(rules, baseline), read=rows, **options))


def _baseline(measured: list[str], asked: str) -> str:
    """The rule to compare with: as asked, or the first where that is random and was not measured."""
    return asked if asked != RANDOM or variants(measured, RANDOM) else measured[0]


def _side_by_side(groups: Sequence[_Group], by_name: Mapping[str, Run]) -> list[str]:
    """Why runs are not set against one another, where they are not."""
    first = groups[0].names[0]
    return [
        f"{group.name} and {first} stand side by side and are not set against one another: they differ in "
        f"{'; '.join(comparable.differences(by_name[first], by_name[group.names[0]]))}"
        for group in groups[1:]
    ]


def _findings(group: _Group, tables: _Selected, several: bool) -> list[Findings]:
    told = findings(Evidence(group.found, group.of(tables.overlap), group.of(tables.profile)))
    if not several:
        return told
    return [Findings(": ".join(filter(None, [group.name, part.heading])), part.sentences) for part in told]


def _tables(groups: Sequence[_Group], data: PlotData) -> list[report_tables.Table]:
    made: list[report_tables.Table] = []
    for place, group in enumerate(groups):
        tables = report_tables.comparison_tables(group.found)
        made += [t.of(group.name, str(place)) for t in tables] if len(groups) > 1 else tables
    if not data.selecting:
        return made
    return made + report_tables.selection_tables(groups[0].found, data, len(data.wanted_rules))


def _pictures(data: PlotData) -> tuple[list[Picture], list[str]]:
    """Every kind that the runs can be drawn as, and why the others are missing."""
    made: list[Picture] = []
    missing: list[str] = []
    for name, kind in registry.kinds().items():
        if kind.reads != "run" or (kind.needs_spans and not has_spans(data.runs)):
            continue
        if kind.needs_selections and not data.selecting:
            missing.append(f"{name} (no selections were saved; measure with `save_selections`)")
            continue
        try:
            for figure, label in _drawn(name, data):
                caption = f"{label}: {kind.summary}" if label else kind.summary
                svg = style.inline_svg(figure, f"p{len(made)}", escape(caption, quote=True))
                wide = figure.get_figwidth() > style.COLUMN_WIDTH
                made.append(Picture(Markup(svg), caption, wide))  # matplotlib escapes its text
        except UsageError as error:
            missing.append(f"{name} ({error})")
    return made, missing


def _drawn(name: str, data: PlotData) -> Iterator[tuple[Figure, str]]:
    """All runs in one picture where they fit, else a picture of each with its name."""
    try:
        yield registry.draw(name, data), ""
    except TooManyPanels:
        if len(data.runs) == 1:
            raise
        for label in named(data.runs):
            yield registry.draw(name, data.alone(label)), label


def _means(groups: Sequence[_Group]) -> str:
    """What a mean is and what near, middle and far are, of each group where they differ."""
    said: dict[str, list[str]] = {}
    for group in groups:
        said.setdefault(group.found.notes[0], []).append(group.name)
    if len(said) == 1:
        (text,) = said
        return f"{text[:1].upper()}{text[1:]}."
    return " ".join(f"{', '.join(names)}: {text}." for text, names in said.items())


def _view(view: TokenView) -> dict[str, Any]:
    explanation = (
        "The context of each document, shaded by what a rule selects among the candidates: averaged over layers and "
        "heads, or one of them. Italic tokens are protected. Of random rules the first draw is shown."
    )
    return {
        "explanation": " ".join([explanation, *view.notes]),
        "names": view.names,
        "data": Markup(view.data),  # JSON in which <, > and & are escaped
    }


def _whole_options(text: str) -> Markup:
    """A text in which no line breaks within an option: browsers break after its hyphens."""
    return Markup(re.sub(r"-{2}[a-z][a-z-]*", r'<span class="option">\g<0></span>', escape(text, quote=True)))


def _render(page: dict[str, Any], wording: Callable[[str], str]) -> str:
    loader = jinja2.PackageLoader("forward_influence.analysis.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["worded"] = lambda text: _whole_options(wording(text))
    raw = {name: loader.get_source(environment, f"report.{name}")[0] for name in ("css", "js")}
    assets = {name: Markup(text) for name, text in raw.items()}  # files of this package
    return environment.get_template("report.html.j2").render(**page, **assets)

"""A report to send to a colleague: one HTML file with findings, pictures, tables, and the text that rules select."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from forward_influence.analysis import overlap, plots, report_tables, style, tokens
from forward_influence.analysis.compare import compare
from forward_influence.analysis.findings import Evidence, findings
from forward_influence.analysis.pairing import RANDOM
from forward_influence.analysis.selections import has_selections
from forward_influence.analysis.token_view import TokenView, token_view
from forward_influence.errors import UsageError
from forward_influence.runs import Run

#: Most bytes of a report; the token view takes what the rest leaves.
LIMIT = 5_000_000
_READING = (
    "Influence is the KL divergence (nats) between the model's next-token predictions with and without the selected "
    "entries of its KV cache. Brackets are 95% intervals; the document is the unit."
)


@dataclass(frozen=True)
class Picture:
    """An inline picture: its markup and caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        html: the whole page.
        sentences: its key findings.
        notes: what was left out, and why.
    """

    html: str
    sentences: list[str]
    notes: list[str]


def report(runs: Sequence[Run], *, baseline: str = RANDOM, limit: int = LIMIT, title: str | None = None) -> Report:
    """Write a report on one or several runs that can be compared.

    Args:
        baseline: the rule that the others are set against; where `random` was not measured, the first rule is taken.
        limit: most bytes of the page.

    Raises:
        UsageError: the runs cannot be compared, or the baseline was not measured.
        ForwardInfluenceError: nothing is measured yet.
    """
    data = plots.PlotData(runs)
    baseline = _baseline(data, baseline)
    data = plots.PlotData(runs, baseline=baseline, read=data.frames)
    found = compare(runs, baseline)
    selecting = [run for run in runs if has_selections(run)]
    each = [
        plots.PlotData((run,), baseline=baseline, read=data.frames if len(runs) == 1 else None) for run in selecting
    ]
    summaries = [overlap.overlap_summary(one.overlap) for one in each if len(one.measured_rules) > 1]
    profiles = [tokens.token_profile(one.shares) for one in each]
    sentences = findings(Evidence(found, _first(summaries), _first(profiles)))
    pictures, not_drawn = _pictures(data, each)
    tables = report_tables.comparison_tables(found)
    tables += [_named(report_tables.overlap_table(t), r, selecting) for t, r in zip(summaries, selecting, strict=False)]
    tables += [_named(report_tables.token_table(t), r, selecting) for t, r in zip(profiles, selecting, strict=True)]
    tables.append(_documents(runs))
    page: dict[str, Any] = {
        "title": title or f"Forward Influence: {', '.join(run.name for run in runs)}",
        "subtitle": _subtitle(runs),
        "findings": sentences,
        "reading": f"{_READING} {found.notes[0][:1].upper()}{found.notes[0][1:]}.",
        "pictures": pictures,
        "not_drawn": not_drawn,
        "tables": tables,
        "runs": [_about(run) for run in runs],
        "made": f"Made by forward-influence {_version(runs)} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    }
    without = _render({**page, "token_view": None})
    view = token_view(selecting, limit - len(without.encode()) - 5_000)
    html = _render({**page, "token_view": None if view is None else _view(view)})
    return Report(html, sentences, [] if view is None else view.notes)


def _first(frames: list[pd.DataFrame]) -> pd.DataFrame | None:
    return frames[0] if frames else None


def _baseline(data: plots.PlotData, asked: str) -> str:
    measured = data.measured_rules
    if asked == RANDOM and not any(rule.split(":")[0] == RANDOM for rule in measured):
        return measured[0]
    return asked


def _pictures(data: plots.PlotData, each: Sequence[plots.PlotData]) -> tuple[list[Picture], list[str]]:
    """Every kind that the runs can be drawn as, and why the others are missing."""
    made: list[Picture] = []
    missing: list[str] = []
    for name, kind in plots.KINDS.items():
        if kind.reads != "run":
            continue
        of_selections = kind.needs_selections or (name == "layers" and data.sweep_is_empty)
        sources = list(each) if of_selections else [data]
        if not sources:
            missing.append(f"{name} (the run has no saved selections; measure with --save-selections)")
        for source in sources:
            caption = f"{source.run.name}: {kind.summary}" if of_selections and len(each) > 1 else kind.summary
            try:
                figure = plots.draw(name, source)
            except UsageError as error:
                missing.append(f"{name} ({error})")
                continue
            svg = style.inline_svg(figure, f"p{len(made)}", escape(caption, quote=True))
            made.append(Picture(Markup(svg), caption))  # matplotlib escapes its text
    return made, missing


def _named(table: report_tables.Table, run: Run, runs: Sequence[Run]) -> report_tables.Table:
    if len(runs) == 1:
        return table
    name = f"{table.name}-{list(runs).index(run)}"
    return report_tables.Table(name, f"{table.title}: {run.name}", table.columns, table.rows, table.note)


def _documents(runs: Sequence[Run]) -> report_tables.Table:
    rows = [
        {"run": run.name, **document, "measured": run.part_path(document["part"]).is_file()}
        for run in runs
        for document in run.documents
    ]

    def cells(row: Any) -> dict[str, report_tables.Cell]:
        several = {"run": report_tables.words(row["run"])} if len(runs) > 1 else {}
        return {
            "document": report_tables.words(row["name"]),
            **several,
            "tokens": report_tables.number(row["tokens"], f"{int(row['tokens']):,}"),
            "contexts": report_tables.number(row.get("segments", 1)),
            "measured": report_tables.words("yes" if row["measured"] else "no"),
            "fingerprint": report_tables.words(str(row["fingerprint"])[:12]),
        }

    return report_tables.table("documents", "Documents", pd.DataFrame(rows), cells)


def _subtitle(runs: Sequence[Run]) -> str:
    first = runs[0]
    model, configuration = first.manifest["model"], first.configuration
    documents = len({d["fingerprint"] for run in runs for d in run.measured()})
    counted = f"{documents} document{'s' * (documents != 1)}"
    lengths = f"{configuration['context']:,} tokens of context, {configuration['continuation']:,} of continuation"
    return f"{model['spec']}, {counted}, {lengths}"


def _version(runs: Sequence[Run]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("forward-influence")
    except PackageNotFoundError:
        return str(runs[0].manifest.get("versions", {}).get("forward_influence", ""))


def _about(run: Run) -> dict[str, Any]:
    """How a run was made, as (name, value) pairs, its command, and its whole configuration."""
    manifest, configuration, model = run.manifest, run.configuration, run.manifest["model"]
    provenance = model.get("provenance") or {}
    source = "; ".join(str(v) for v in (provenance.get("source"), provenance.get("note")) if v)
    measured = len(run.measured())
    candidates = (
        f"all but the first {configuration['protect_first']} and the last {configuration['protect_last']} tokens"
    )
    full, layers = len(model["full_layers"]), model["layers"]
    skipped = [f"{s['name']} ({s['reason']})" for s in manifest.get("skipped") or []]
    facts = [
        ("Model", f"{model['spec']} ({model['class']}, {model['dtype']} on {model['device']})"),
        ("Weights", source or "as given"),
        ("Model fingerprint", model["fingerprint"]),
        ("Layers", f"{layers}, of which {full} with full attention; {model['query_heads']} query heads, "
                   f"{model['kv_heads']} key/value heads"),
        ("Documents", f"{measured} of {len(run.documents)} measured, from {configuration['documents']}"),
        ("Skipped", "; ".join(skipped) if skipped else "none"),
        ("Rules", ", ".join(configuration["selectors"])),
        ("Budgets", ", ".join(map(str, configuration["budgets"]))),
        ("Mode and effect", f"{configuration['mode']}, {configuration['effect']}"),
        ("Candidates", candidates),
        ("Configuration hash", manifest["configuration_hash"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items())),
        ("Execution", ", ".join(f"{k} {v}" for k, v in (manifest.get("execution") or {}).items())),
        ("Begun", manifest.get("created", "")),
    ]  # fmt: skip
    return {
        "name": run.name,
        "command": manifest.get("command", ""),
        "facts": facts,
        "configuration": json.dumps(configuration, indent=1, default=str),
    }


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


def _render(page: dict[str, Any]) -> str:
    loader = jinja2.PackageLoader("forward_influence.analysis", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    raw = {name: loader.get_source(environment, f"report.{name}")[0] for name in ("css", "js")}
    assets = {name: Markup(text) for name, text in raw.items()}  # files of this package
    return environment.get_template("report.html.j2").render(**page, **assets)

"""What a report says about its runs: how each was made, how to repeat it, and what is missing from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.wording import many
from forward_influence.analysis.reading.parts import measured
from forward_influence.analysis.report.tables import Table, table
from forward_influence.analysis.tables.cells import Cell, number, whole, words
from forward_influence.storage.run import Run


def subtitle(runs: Sequence[Run]) -> str:
    """Models, documents and lengths in a line."""
    models = list(dict.fromkeys(str(run.manifest["model"]["spec"]) for run in runs))
    documents = len({d["fingerprint"] for run in runs for d in measured(run)})
    lengths = dict.fromkeys(_lengths(run) for run in runs)
    return f"{' and '.join(models)}, {many(documents, 'document')}, {' or '.join(lengths)}"


def _lengths(run: Run) -> str:
    """Context and continuation in tokens; of a run by spans, which they are."""
    asked = run.configuration
    if asked.get("measure_on"):
        return f"measured on {asked['measure_on']} after {asked.get('context_of') or 'all before it'}"
    return f"{asked['context']:,} tokens of context, {asked['continuation']:,} of continuation"


def made_by(runs: Sequence[Run]) -> str:
    """The version of this package; that of the first run where it is not installed."""
    try:
        return version("forward-influence")
    except PackageNotFoundError:
        return str(runs[0].manifest.get("versions", {}).get("forward_influence", ""))


def documents(runs: Mapping[str, Run]) -> Table:
    """Every document of the runs (by name), and whether it is measured."""
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        done = {d["part"] for d in measured(run)}
        rows += [{**d, "run": name, "measured": "yes" if d["part"] in done else "no"} for d in run.documents]

    def cells(row: Any) -> dict[str, Cell]:
        several = {"run": words(row["run"])} if len(runs) > 1 else {}
        return {
            "document": words(row["name"]),
            **several,
            "tokens": whole(row["tokens"]),
            "contexts": number(row.get("segments", 1), digits=1),
            "measured": words(row["measured"]),
            "fingerprint": words(str(row["fingerprint"])[:12]),
        }

    return table("documents", "Documents", pd.DataFrame(rows), cells)


def about(run: Run, label: str) -> dict[str, Any]:
    """How a run was made, as (name, value) pairs, its command, and its whole configuration."""
    manifest, asked, model = run.manifest, run.configuration, run.manifest["model"]
    provenance = model.get("provenance") or {}
    source = "; ".join(str(v) for v in (provenance.get("source"), provenance.get("note")) if v)
    ends = [asked.get(name) or 0 for name in ("protect_first", "protect_last")]
    skipped = [f"{s['name']} ({s['reason']})" for s in manifest.get("skipped") or []]
    facts = [
        ("Model", f"{model['spec']} ({model['class']}, {model['dtype']} on {model['device']})"),
        ("Weights", source or "as given"),
        ("Model fingerprint", model["fingerprint"]),
        ("Layers", f"{model['layers']}, of which {len(model['full_layers'])} with full attention; "
                   f"{model['query_heads']} query heads, {model['kv_heads']} key/value heads"),
        ("Entries and states", model.get("holding", "")),
        ("Documents", f"{len(measured(run))} of {len(run.documents)} measured, from {_listed(asked.get('documents'))}"),
        ("Skipped", "; ".join(skipped) if skipped else "none"),
        ("Rules", _listed(asked.get("selectors"))),
        ("Compressors", _listed(asked.get("compressors"))),
        ("Budgets", _listed(asked.get("budgets"))),
        ("Entries held by compressors", _listed(asked.get("match_held"))),
        ("Mode and effect", f"{asked.get('mode', 'drop')}, {asked.get('effect', 'total')}"),
        ("Candidates", f"all but the first {ends[0]} and the last {ends[1]} tokens" if asked.get("selectors") else ""),
        ("Compressors pin", _pinned(*ends) if asked.get("compressors") else ""),
        ("Remarks", "; ".join(manifest.get("remarks") or [])),
        ("Configuration hash", manifest["configuration_hash"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items())),
        ("Execution", ", ".join(f"{k} {v}" for k, v in (manifest.get("execution") or {}).items())),
        ("Begun", manifest.get("created", "")),
    ]  # fmt: skip
    return {
        "name": label,
        "command": manifest.get("command", ""),
        "facts": [(name, value) for name, value in facts if value],
        "configuration": json.dumps(asked, indent=1, default=str),
    }


def _pinned(first: int, last: int | float) -> str:
    """Which tokens compressors are made to keep; what came of it at each budget is in the tables."""
    at_end = f"the last {last}" if isinstance(last, int) else f"of what is kept the last {last:.0%}"
    return (
        f"the first {first} and {at_end}, at most half of what is kept; a prompt that is kept whole and a window that "
        "comes on top as well"
    )


def _listed(values: Any) -> str:
    """A list of the configuration, or one value, in words; "" for none."""
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values or "")

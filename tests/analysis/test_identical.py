"""Rules that are one choice under two names are named: in the table, under it, and in the report."""

from __future__ import annotations

import pandas as pd
import tiny_data
from simulated import simulate

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.measures.identical import identical_rules
from forward_influence.analysis.report.page import report
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request

SAME = {frozenset({"streaming", "recent"}), frozenset({"attention:window=8", "infokv:alpha=1.0,window=8"})}


def measured(folder, documents=2, **changes):
    rules = ("streaming", "recent", "attention:window=8", "infokv:alpha=1,window=8", "knorm", "random")
    made = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2",), "draws": 2, **changes}
    request = Request(selectors=rules, **made)
    return measure(tiny_data.model(), tiny_data.documents(documents, 100), request, folder)


def pairs_of(found: pd.DataFrame) -> set[frozenset[str]]:
    return {frozenset({row["rule_a"], row["rule_b"]}) for row in found.to_dict("records")}


def test_rules_that_select_the_same_are_named_and_no_others(tmp_path):
    run = measured(tmp_path / "run", budgets=("0.2", "0.1"))
    found = compare(run)
    alike = identical_rules(found.fine)
    assert pairs_of(alike) == SAME
    assert len(alike) == 4 and set(alike["documents"]) == {2}, "both budgets"
    line = "streaming and recent select the same entries in all 2 documents (drop 0.2; drop 0.1): "
    line += "one choice under two names"
    assert line in found.notes
    flags = found.table.set_index(["selector", "budget", "zone"])["flags"]
    assert "selects what recent selects, in all 2 documents" in flags["streaming", "0.2", "far"]
    assert "selects what streaming selects" in flags["recent", "0.1", "near"]
    assert not any("selects what" in text for text in flags[["knorm", "random"]])
    assert line in report([run]).html.replace("&#34;", '"')


def test_one_document_that_differs_is_enough(tmp_path):
    found = compare(measured(tmp_path / "run")).fine
    first = found["document"].unique()[0]
    changed = (found["document"] == first) & (found["selector"] == "recent") & (found["low"] == found["low"].max())
    assert changed.sum() == 1
    found.loc[changed, "measured"] *= 1 + 1e-15
    assert pairs_of(identical_rules(found)) == SAME - {frozenset({"streaming", "recent"})}


def test_rules_of_other_documents_are_not_compared(tmp_path):
    found = compare(measured(tmp_path / "run")).fine
    first = found["document"].unique()[0]
    found = found[(found["document"] != first) | (found["selector"] != "recent")]
    assert pairs_of(identical_rules(found)) == SAME - {frozenset({"streaming", "recent"})}


def test_rules_that_change_nothing_are_no_finding(tmp_path):
    found = compare(simulate(tmp_path / "run", documents=6)).fine
    assert len(identical_rules(found)) == 0
    found.loc[found["selector"].isin(["attention", "entropy"]), ["measured", "nll_delta", "top1_changed"]] = 0.0
    assert len(identical_rules(found)) == 0

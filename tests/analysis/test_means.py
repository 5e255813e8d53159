"""Geometric and arithmetic means side by side: values, BCa intervals, and what is said where they disagree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from simulated import Decay, effects_of_documents, simulate
from typer.testing import CliRunner

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.report.findings import Evidence, findings
from forward_influence.analysis.report.page import report
from forward_influence.analysis.statistics import means
from forward_influence.analysis.statistics.inference import bootstrap_quantiles
from forward_influence.analysis.statistics.means import arithmetic, disagreement, ratio_of_means
from forward_influence.cli.app import build
from forward_influence.storage.run import Run

RNG = np.random.default_rng
RULES = {"attention": Decay("power", 0.3, 0.5), "entropy": Decay("power", 0.3, 0.5), "random": Decay("power", 0.3, 0.5)}


def documents(n: int = 8, zones: int = 3) -> tuple[np.ndarray, np.ndarray]:
    both = np.exp(RNG(0).normal(-3, 0.5, (n, 1)))
    return tuple(both * np.exp(RNG(seed).normal(0, 0.4, (n, zones))) for seed in (1, 2))  # type: ignore[return-value]


def scaled(run: Run, factors: dict[str, list[float]]) -> Run:
    """The run with every condition of a rule on document i multiplied by the rule's factor i."""
    for i, document in enumerate(run.documents):
        rows = run.part(document["part"]).rows
        for row in rows:
            if row["kind"] == "condition" and row["selector"] in factors:
                row["kl"] = (np.asarray(row["kl"]) * factors[row["selector"]][i]).astype(np.float32)
        run.write_part(document["part"], rows, {"seconds": 1.0})
    return run


def test_means_are_plain_ones_and_bounds_are_scipys() -> None:
    """Each zone by itself, by scipy's bootstrap at the widened level, to the noise of resampling."""
    a, b = documents()
    wide = 1 - 2 * bootstrap_quantiles(8)[0]
    found, alone = ratio_of_means(a, b), arithmetic(a)
    for zone in range(3):
        x, y = a[:, zone], b[:, zone]
        options = {"n_resamples": means.RESAMPLES, "confidence_level": wide, "method": "BCa"}
        options |= {"random_state": 0, "batch": 1000}
        ratio = stats.bootstrap((x, y), lambda s, t: s.mean() / t.mean(), paired=True, vectorized=False, **options)
        assert found[0][zone] == pytest.approx(x.mean() / y.mean())
        assert [found[1][zone], found[2][zone]] == pytest.approx(list(ratio.confidence_interval), rel=1e-3)
        one = stats.bootstrap((x,), np.mean, **options)
        assert alone[0][zone] == pytest.approx(x.mean())
        assert [alone[1][zone], alone[2][zone]] == pytest.approx(list(one.confidence_interval), rel=1e-3)


def test_intervals_follow_level_clusters_and_number_of_documents() -> None:
    a, b = documents()
    plain, wide = ratio_of_means(a, b), ratio_of_means(a, b, level=0.99)
    assert (wide[1] < plain[1]).all() and (wide[2] > plain[2]).all()
    doubled = ratio_of_means(np.repeat(a, 2, 0), np.repeat(b, 2, 0), np.repeat(np.arange(8), 2))
    np.testing.assert_allclose(doubled, plain)
    few = ratio_of_means(a[:5], b[:5])
    assert np.isfinite(few[0]).all() and np.isnan(few[1]).all() and np.isnan(few[2]).all()


def test_documents_that_do_not_differ_and_zeros() -> None:
    a, b = documents()
    for bound in ratio_of_means(3 * b, b):
        np.testing.assert_allclose(bound, 3.0)
    some = a.copy()
    some[0] = 0.0
    value, low, high = ratio_of_means(some, b)
    assert np.isfinite([value, low, high]).all(), "a mean needs no logs"
    assert np.isnan(ratio_of_means(a, np.zeros_like(b))).all()


@pytest.mark.parametrize("gaussian", [False, True])
def test_intervals_cover_about_what_the_docs_say(gaussian: bool) -> None:
    """As benchmarks/means_coverage.py, smaller: 8 documents; plain BCa quantiles would cover 82% to 88%."""
    rng = RNG(5)
    both = effects_of_documents(rng, 0.4, (8, 300), gaussian)
    a, b = (both * effects_of_documents(rng, 0.3, (8, 300), gaussian) for _ in range(2))
    _, low, high = ratio_of_means(a, b)
    assert 0.90 <= ((low <= 1) & (high >= 1)).mean() <= 0.98


DISAGREE = {"entropy": [0.7] * 8 + [8.0], "attention": [1.0] * 9, "random": [1.0] * 9}


@pytest.fixture(scope="module")
def disagreeing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Nine documents: entropy below random and attention in eight, eight times as large in one."""
    quiet = {"document_spread": 0.05, "rule_spread": 0.02, "noise": 0.1}
    return scaled(simulate(tmp_path_factory.mktemp("means") / "run", RULES, documents=9, **quiet), DISAGREE)


def test_where_the_means_disagree_it_is_said(disagreeing: Run) -> None:
    found = compare(disagreeing)
    row = found.table.query("selector == 'entropy' and zone == 'far'").iloc[0]
    assert row["ratio"] == pytest.approx(np.exp(np.log(DISAGREE["entropy"]).mean()), rel=0.05)
    assert row["ratio_of_means"] == pytest.approx(np.mean(DISAGREE["entropy"]), rel=0.05)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
    assert row["ratio_of_means_low"] < row["ratio_of_means"] < row["ratio_of_means_high"]
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    said = [note for note in found.notes if "disagree about direction" in note]
    assert len(said) == 3 and all(note.startswith("entropy against random, ") for note in said)
    pattern = r"far: .* 0\.9\d+× \[[\d., ]+\], below 1, though not surely, .* but 1\.[45]\d× \[[\d., ]+\], above 1"
    assert re.search(pattern, said[2])
    sentences = [s for group in findings(Evidence(found)) for s in group.sentences]
    assert any(s.startswith("entropy against random, near: the two means disagree") for s in sentences)
    (attention,) = [s for s in sentences if s.startswith("entropy's influence")]
    assert "(of arithmetic means: 1.5" in attention
    assert "The two means disagree about the direction near (" in attention


def test_where_they_agree_nothing_is_said(tmp_path: Path) -> None:
    rules = {**RULES, "entropy": Decay("power", 0.9, 0.5)}
    found = compare(simulate(tmp_path / "run", rules, documents=8))
    assert not any("disagree" in note for note in found.notes if note.startswith("entropy"))
    assert any(note.startswith("the geometric mean of ratios says") for note in found.notes)


def test_disagreement_in_words() -> None:
    row = {"ratio": 0.8, "ratio_low": 0.7, "ratio_high": 0.9, "ratio_of_means": 1.5, "ratio_of_means_low": 0.9}
    row["ratio_of_means_high"] = 2.5
    assert disagreement(row) == (
        "0.800× [0.700, 0.900], below 1, in a typical document, but 1.50× [0.900, 2.50], above 1, though not surely, "
        "in the sum over documents"
    )
    assert disagreement({**row, "ratio": 1.2}) == disagreement({**row, "ratio": float("nan")}) == ""
    assert disagreement({**row, "ratio_of_means": 1.0}) == ""


def test_both_stand_in_the_tables_in_json_and_in_the_report(disagreeing: Run) -> None:
    def typed(*arguments: str) -> str:
        done = CliRunner().invoke(build(), ["compare", str(disagreeing.folder), *arguments], env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return done.output

    shown = typed()
    assert "Geometric and arithmetic means over documents" in shown
    assert "mean of ratios to random [95%]" in shown and "ratio of means [95%]" in shown
    rows = json.loads(typed("--format", "json", "--show", "comparison"))["comparison"]
    named = {f"{name}{end}" for name in ("mean", "ratio_of_means") for end in ("", "_low", "_high")}
    assert named <= set(rows[0])
    page = report([disagreeing]).html
    assert "ratio of arithmetic means [95%]" in page
    assert "they disagree" in page

"""The report: its sentences follow from the numbers, its page is self-contained, its token data unpack to the truth."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, t
from simulated import Decay, simulate

from forward_influence.analysis import findings, token_view
from forward_influence.analysis.compare import compare
from forward_influence.analysis.report import Report, report
from forward_influence.analysis.selections import Context, read_selections
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.runs import Run

RULES = {
    "attention": Decay("power", 1.0, 0.9),
    "entropy": Decay("power", 0.12, 0.45),
    "random": Decay("power", 0.1, 0.6),
}


@dataclass(frozen=True)
class Made:
    """A simulated run and its report."""

    run: Run
    report: Report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report") / "run"
    run = simulate(folder, RULES, documents=8, draws=2, layers=3, save_selections=True, rule_spread=0.1)
    return Made(run, report([run]))


class Page(HTMLParser):
    """Collects tags, ids, text outside of scripts, and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._raw = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._raw = tag in ("script", "style")
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset") and value:
                self.addresses.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data


def unpack(packed: str) -> tuple[dict[str, Any], bytes]:
    """A second implementation of what the page does."""
    whole = zlib.decompress(base64.b64decode(packed))
    length = int.from_bytes(whole[:4], "little")
    return json.loads(whole[4 : 4 + length]), whole[4 + length :]


def test_page_needs_no_network_and_ids_are_unique(made: Made) -> None:
    page = Page(made.report.html)
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in made.report.html
    assert page.tags.count("svg") == 8
    targets = [a[1:] for a in page.addresses if a.startswith("#")]
    assert set(targets) <= set(page.ids)


def test_page_says_how_to_repeat_it(made: Made) -> None:
    page, manifest = Page(made.report.html), made.run.manifest
    for wanted in (
        manifest["command"],
        manifest["configuration_hash"],
        manifest["model"]["fingerprint"],
        "short speech",
    ):
        assert wanted in page.text
    for key in made.run.configuration:
        assert f'"{key}"' in page.text


def test_findings_state_the_planted_crossover_with_its_interval(made: Made) -> None:
    distance = np.arange(1024)
    truth = int(np.flatnonzero(RULES["entropy"].at(distance) > RULES["attention"].at(distance))[0])
    (sentence,) = [s for s in made.report.sentences if s.startswith("entropy's influence exceeds attention's from")]
    at, low, high = (int(x) for x in re.findall(r"\d+", sentence.replace("95%", "")))
    assert low <= truth <= high
    assert at == pytest.approx(truth, rel=0.4)
    row = compare(made.run, pairs=[("entropy", "attention")]).crossovers.iloc[0]
    assert (at, low, high) == (round(row["distance"]), round(row["low"]), round(row["high"]))


def test_findings_state_what_was_not_found(tmp_path: Path) -> None:
    weak = {
        "attention": Decay("power", 1.0, 0.5),
        "entropy": Decay("power", 0.1, 0.5),
        "random": Decay("power", 0.1, 0.5),
    }
    run = simulate(tmp_path / "run", weak, documents=8, rule_spread=0.05)
    sentences = findings.findings(findings.Evidence(compare(run)))
    expected = "entropy's influence does not exceed attention's at any distance within the range (0 to 1,023 tokens)."
    assert expected in sentences
    assert any(re.match(r"In the far zone, entropy \(.*× \[.*\]\) cannot be told from random\.", s) for s in sentences)


def test_the_largest_influence_names_what_cannot_be_told_from_it(tmp_path: Path) -> None:
    alike = {"attention": Decay("power", 1.0, 0.5), "h2o": Decay("power", 1.0, 0.5), "random": Decay("power", 0.1, 0.5)}
    found = compare(simulate(tmp_path / "run", alike, documents=8, rule_spread=0.2))
    (near,) = [s for s in findings.findings(findings.Evidence(found)) if s.startswith("Near the context")]
    top, other = re.match(r"Near the context, (\w+) has .*; (\w+) \(", near).groups()  # type: ignore[union-attr]
    assert {top, other} == {"attention", "h2o"}
    logs = (
        found.zones[found.zones["zone"] == "near"].pivot(index="document", columns="selector", values="kl").map(np.log)
    )
    difference = logs[other] - logs[top]
    half = t.ppf(0.975, 7) * difference.std() / np.sqrt(8)
    assert difference.mean() < 0 < difference.mean() + half
    bounds = [float(x) for x in re.findall(r"[\d.]+(?=[,\]])", near.split(f"{other} (")[1])]
    assert bounds == pytest.approx(np.exp([difference.mean() - half, difference.mean() + half]), rel=0.01)


@pytest.mark.parametrize(
    ("distance", "low", "high", "expected"),
    [
        (92.4, 70, 119, "entropy's influence exceeds attention's from 92 tokens on (95% interval: 70 to 119)."),
        (0.0, 0, np.inf, "though that it never does is not excluded (95% interval: 0 to beyond the range)."),
        (40.0, 9, np.inf, "from 40 tokens on, though that it never does is not excluded"),
        (np.inf, 900, np.inf, "does not come to exceed attention's for good within the range (0 to 1,023 tokens) (95%"),
        (np.nan, np.nan, np.nan, "could not be set against attention's (no document has both)."),
    ],
)
def test_crossings_in_words(distance: float, low: float, high: float, expected: str) -> None:
    row = SimpleNamespace(rule="entropy", distance=distance, low=low, high=high, reason="no document has both")
    assert expected in findings._crossing_sentence(row, never=False, end=1023)


def test_findings_below_six_documents_claim_nothing(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=5)
    sentences = findings.findings(findings.Evidence(compare(run)))
    assert sentences[0].startswith("With 5 documents nothing can be inferred")
    assert not any("[" in s or "cannot be told" in s or "95%" in s for s in sentences)


def test_findings_name_conditions_floor_and_direct_share(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=6, effects=("total", "direct"), floor=0.05, direct_share=0.6)
    sentences = findings.findings(findings.Evidence(compare(run)))
    assert any(s.startswith("Total effect: entropy's influence exceeds") for s in sentences)
    assert any(s.startswith("Direct effect: under three times the noise floor") and "far" in s for s in sentences)
    shares = [s for s in sentences if s.startswith("The direct effect is")]
    assert len(shares) == 2
    for sentence in shares:
        found = [float(x) for x in re.findall(r"(0\.\d+) \[", sentence)]
        assert found == pytest.approx([0.6, 0.6], abs=0.1)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.02344, 2, "0.023"),
        (4.44, 2, "4.4"),
        (1234.5, 3, "1,234"),
        (1.5e-5, 2, "1.5e-5"),
        (0, 2, "0"),
        (75.41, 3, "75.4"),
    ],
)
def test_numbers_in_words(value: float, digits: int, text: str) -> None:
    assert findings.say(value, digits) == text


def test_selections_unpack_to_what_was_saved(made: Made) -> None:
    for document in list(read_selections(made.run))[:3]:
        packed = token_view.pack_segment(document, 0, [0, 1, 2], "entry")
        assert packed is not None
        head, body = unpack(packed)
        context = document.contexts[0]
        assert head["pieces"] == context.pieces
        assert [r["label"] for r in head["rules"]] == ["attention", "entropy", "random · draw 0"]
        first = {c.selector: c for c in reversed(document.choices)}
        for rule in head["rules"]:
            choice = first[rule["label"].split(" ")[0]]
            n = len(context.pieces)
            bits = np.unpackbits(np.frombuffer(body, np.uint8, offset=rule["selection"]["offset"]))
            size = int(np.prod(rule["selection"]["shape"])) * n
            selection = bits[:size].reshape(*rule["selection"]["shape"], n).astype(bool)
            assert (np.broadcast_to(selection, choice.selection.shape) == choice.selection).all()
            shape = rule["rank"]["shape"]
            ranks = np.frombuffer(body, np.uint8, int(np.prod(shape)) * n, rule["rank"]["offset"]).reshape(*shape, n)
            assert choice.scores is not None
            inside = slice(context.first, context.stop)
            below = (rankdata(choice.scores[..., inside], axis=-1) - 1) / (context.stop - context.first - 1)
            assert np.abs(ranks[..., inside] / 255 - below).max() <= 0.5 / 255 + 1e-9
            raw = np.frombuffer(body, "<u2", n, rule["raw"]).astype(np.uint32) << 16
            assert np.allclose(raw.view(np.float32), choice.scores.mean((0, 1)), rtol=0.004)


def test_a_rule_that_reads_no_head_is_packed_once() -> None:
    per_token = np.broadcast_to(np.arange(16) % 3 == 0, (4, 2, 16))
    shape, data = token_view.packed_bits(per_token)
    assert (shape, len(data)) == ([1, 1], 2)
    per_layer = np.stack([per_token[0], ~per_token[0]])
    assert token_view.packed_bits(per_layer)[0] == [2, 1]


def test_ranks_at_coarser_grains_are_means() -> None:
    scores = np.random.default_rng(0).random((3, 2, 12)).astype(np.float32)
    context = Context(np.arange(12), ["x"] * 12, 2, 10)

    def ranks(grain: str) -> tuple[np.ndarray, str]:
        shape, data, name = token_view.rank_bytes(scores, context, grain)
        return np.frombuffer(data, np.uint8).reshape(*shape, 12) / 255, name

    entry, layer, token = (ranks(g) for g in token_view.GRAINS)
    assert [x[1] for x in (entry, layer, token)] == ["entry", "layer", "token"]
    assert np.abs(entry[0].mean(1, keepdims=True) - layer[0]).max() < 1 / 255
    assert np.abs(entry[0].mean((0, 1), keepdims=True) - token[0]).max() < 1 / 255
    assert (entry[0][..., :2] == 0).all()
    assert (entry[0][..., 10:] == 0).all()


def test_bfloat16_keeps_two_digits_and_not_a_number() -> None:
    values = np.array([1.0, 0.1234567, -3e-9, 1e30, np.nan, -np.inf])
    back = (np.frombuffer(token_view.bfloat16_bytes(values), "<u2").astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(back[:4], values[:4], rtol=0.004)
    assert np.isnan(back[4:]).all()


def test_size_is_kept_by_coarser_ranks_then_fewer_documents(made: Made) -> None:
    whole = token_view.token_view([made.run], 10**7)
    assert whole is not None
    assert (len(whole.names), whole.notes) == (8, [])
    coarser = token_view.token_view([made.run], int(len(whole.data) * 0.8))
    assert coarser is not None
    assert (len(coarser.names), len(coarser.notes)) == (8, 1)
    assert "score ranks are means" in coarser.notes[0]
    fewer = token_view.token_view([made.run], 12_000)
    assert fewer is not None
    assert 0 < len(fewer.names) < 8
    assert f"{len(fewer.names)} of 8 contexts are shown" in fewer.notes[-1]
    assert len(fewer.data) <= 12_000
    assert token_view.token_view([made.run], 10) is None
    small = report([made.run], limit=len(made.report.html.encode()) - len(whole.data) // 2)
    assert len(small.html.encode()) < len(made.report.html.encode()) - len(whole.data) // 2
    assert small.notes[0] in Page(small.html).text


def test_script_json_cannot_close_its_element() -> None:
    hostile = {"a": "</script><script>alert(1)</script><!-- & \u2028"}
    text = token_view.script_json(hostile)
    assert not set("<>&") & set(text)
    assert json.loads(text) == hostile


def test_markup_in_names_is_shown_as_text(tmp_path: Path) -> None:
    hostile = '</title><script>alert("x")</script>'
    run = simulate(tmp_path / "run", RULES, documents=2, manifest={"model": {"spec": hostile}})
    html = report([run], title=hostile).html
    assert "<script>alert" not in html
    page = Page(html)
    assert page.text.count('<script>alert("x")</script>') >= 2
    assert page.tags.count("script") == 1  # the page's own; the token view's data are missing with the selections


def test_a_report_without_selections_says_what_is_missing(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2)
    page = Page(report([run]).html)
    assert "tokens" not in page.ids
    assert "Not drawn: overlap (the run has no saved selections; measure with --save-selections)" in page.text


def test_two_runs_in_one_report(tmp_path: Path) -> None:
    runs = [
        simulate(tmp_path / name, RULES, documents=3, budgets=(budget,), save_selections=True, draws=1)
        for name, budget in (("low", "0.1"), ("high", "0.2"))
    ]
    page = Page(report(runs).html)
    assert {"overlap-0", "overlap-1", "profile-0", "profile-1", "comparison"} <= set(page.ids)
    assert all(run.manifest["command"] in page.text for run in runs)


def test_runs_that_cannot_be_reported(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2)
    other = simulate(tmp_path / "other", RULES, documents=2, context=300)
    with pytest.raises(UsageError, match=r"context \(256 against 300\)"):
        report([run, other])
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        report([run], baseline="entropi")
    with pytest.raises(ForwardInfluenceError, match="holds no measured condition yet"):
        report([simulate(tmp_path / "empty", RULES, documents=2, measured=0)])


def test_without_random_the_first_rule_is_the_baseline(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", {k: RULES[k] for k in ("attention", "entropy")}, documents=6)
    assert any("attention's." in s and "×" in s for s in report([run]).sentences)

"""The report: its page is self-contained, says how to repeat it, and its token data unpack to the truth."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata
from simulated import Decay, simulate

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.selections import Context, read_selections
from forward_influence.analysis.report import token_view
from forward_influence.analysis.report.page import Report, report
from forward_influence.storage import run as runs
from forward_influence.storage.run import Run

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
    assert "simulated" in page.text


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
            raw = np.frombuffer(body, "<u2", n, rule["raw"]["offset"]).astype(np.uint32) << 16
            assert np.allclose(raw.view(np.float32), choice.scores.mean((0, 1)), rtol=0.004)
            alike = choice.selector == "entropy"
            said = " (the same in every layer and head)" if alike else " (mean over all layers and heads)"
            assert rule["raw"]["grain"] == said


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
    whole = token_view.token_view(named([made.run]), 10**7)
    assert whole is not None
    assert (len(whole.names), whole.notes) == (8, [])
    coarser = token_view.token_view(named([made.run]), int(len(whole.data) * 0.8))
    assert coarser is not None
    assert (len(coarser.names), len(coarser.notes)) == (8, 1)
    assert "score ranks are means" in coarser.notes[0]
    fewer = token_view.token_view(named([made.run]), 12_000)
    assert fewer is not None
    assert 0 < len(fewer.names) < 8
    assert f"{len(fewer.names)} of 8 contexts are shown" in fewer.notes[-1]
    assert len(fewer.data) <= 12_000
    assert token_view.token_view(named([made.run]), 10) is None
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
    assert "Not drawn: overlap (no selections were saved; measure with `save_selections`)" in page.text


def test_counts_are_whole_and_lists_are_words(tmp_path: Path) -> None:
    fields = {"configuration": {"documents": ["sotu", "more.txt"]}}
    run = simulate(tmp_path / "run", RULES, documents=6, save_selections=True, draws=1, manifest=fields)
    html = report([run]).html
    text = Page(html).text
    assert "6 of 6 measured, from sotu, more.txt" in text
    assert '<td data-value="6.0">6</td>' in html
    assert '<td data-value="6.0">6.00' not in html
    assert "['sotu'" not in text


def test_configurations_leave_out_what_was_not_asked_for(tmp_path: Path) -> None:
    """Runs store no zeros and no empty lists: --protect-first 0, or compressors without rules."""
    run = simulate(tmp_path / "run", {k: RULES[k] for k in ("attention", "random")}, documents=2, mode="keep")
    asked = run.configuration
    for name in ("protect_first", "selectors", "seed", "per_layer"):
        del asked[name]
    asked["compressors"] = ["attention", "random"]
    text = Page(report([run]).html).text
    assert "all but the first" not in text, "there is no rule that has candidates"
    assert "the first 0 and the last 64, at most half of what is kept" in text
    assert "attention, random" in text


def test_all_that_has_to_be_said_of_a_table_is_said(made: Made) -> None:
    text = Page(made.report.html).text
    for note in compare(made.run).notes_about(["table", "decay", "crossovers", "controls"]):
        assert note in text


def test_values_under_the_noise_floor_bear_a_star(tmp_path: Path) -> None:
    rules = {"attention": Decay("exponential", 0.1, 100), "random": Decay("flat", 0.01)}
    html = report([simulate(tmp_path / "run", rules, documents=6, floor=1e-3)]).html
    rows = re.findall(r"<tr><td data-value=\"attention\".*?</tr>", html)
    far = next(row for row in rows if ">far<" in row)
    near = next(row for row in rows if ">near<" in row)
    assert re.search(r">[\d.e-]+\* \[", far)
    assert "* [" not in near


def test_the_comparison_of_a_report_reads_every_part_twice_at_most(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the curves, once (and never again in this process) to know which documents have whole parts."""
    read: list[Path] = []
    real = runs.Run.part

    def counted(self: Run, stem: str) -> Any:
        read.append(self.part_path(stem))
        return real(self, stem)

    monkeypatch.setattr(runs.Run, "part", counted)
    report([made.run])
    assert max(Counter(read).values(), default=0) <= 1

"""Measuring by spans: documents of different lengths, a span's candidates, an answer's positions, by brute force."""

from __future__ import annotations

import json
import re
from pathlib import Path

import brute_force
import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import load_file

from forward_influence.data.cutting import Prepared
from forward_influence.data.spans import Span, SpanChoice, lay_out
from forward_influence.errors import UsageError
from forward_influence.execution.extend import add
from forward_influence.execution.run import Source, measure
from forward_influence.measurement.placing import placeable
from forward_influence.measurement.request import Request
from forward_influence.storage.run import Run

RULES = ("recent", "attention:window=4", "random")
ASKED = {"context_of": "prompt+thought", "measure_on": "answer", "candidates_of": "thought", "protect_last": 4}

UNPROTECTED = {"protect_last": 0, "protect_first": 0, "selectors": ("recent", "random")}


def request(*selectors: str, **changes) -> Request:
    return Request(**{"selectors": selectors or RULES, **ASKED, "budgets": ("0.25",), "draws": 2, **changes})


def documents(asked: Request, lengths=((9, 30, 7), (14, 41, 12), (5, 25, 4))) -> list[tiny_data.Cut]:
    """Random tokens; user, thought and answer of these lengths, two tokens of template around each."""
    made = []
    for (user, thought, answer), plain in zip(lengths, tiny_data.documents(len(lengths), 120), strict=True):
        spans, at = [], 2
        for name, length in (("user", user), ("thought", thought), ("answer", answer)):
            spans.append(Span(name, at, at + length))
            at += length + 2
        layout = lay_out(spans, asked.spans)
        assert not isinstance(layout, str), layout
        tokens = plain.segments[0][: layout.context + layout.continuation]
        made.append(tiny_data.Cut(plain.document, (tokens,), at, layout))
    return made


@pytest.fixture(scope="module")
def model():
    return tiny_data.model(dtype=torch.float64)


def selections(run: Run, document: tiny_data.Cut) -> dict[str, torch.Tensor]:
    return load_file(run.selections_path(next(d["part"] for d in run.documents if d["name"] == document.document.name)))


def rows_of(run: Run, document: tiny_data.Cut) -> list[dict]:
    return [row for row in run.rows() if row["document"] == document.document.name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_of": None},
        {"context_of": "user", "candidates_of": None, "protect_first": 2},
        {"mode": "keep"},
        {"measure_on": "thought+answer", "context_of": "user", "candidates_of": "user", **UNPROTECTED},
        {"effect": "direct"},
    ],
    ids=["answer", "up to the answer", "thought in between", "keep", "two spans", "direct"],
)
def test_rows_equal_brute_force_at_the_positions_that_predict_the_span(model, tmp_path: Path, changes: dict) -> None:
    asked = request(save_selections=True, **changes)
    cuts = documents(asked)
    run = measure(model, cuts, asked, tmp_path / "run", chunk=16)
    for document in cuts:
        layout, tokens, kept = document.layout, document.segments[0], selections(run, document)
        measured = [s for s in layout.spans if s.name in asked.spans.measure_on]
        predicting = [t - 1 - layout.context for s in measured for t in range(s.start, s.end)]
        rows = rows_of(run, document)
        assert {row["continuation"] for row in rows} == {len(predicting)}
        for number, row in enumerate(rows):
            if row["kind"] != "condition":
                continue
            mask = kept[f"selection/{number}"].bool()
            inside = torch.zeros(layout.context, dtype=torch.bool)
            if asked.candidates_of is not None:
                [span] = [s for s in layout.spans if s.name == asked.candidates_of]
                inside[max(span.start, asked.protect_first) : min(span.end, layout.context - asked.protected_last)] = (
                    True
                )
            else:
                inside[asked.protect_first : layout.context - 4] = True
            share = int(inside.sum()) if asked.candidates_of else layout.context
            assert mask[..., inside].sum(-1).unique().tolist() == [max(1, int(0.25 * share))]
            assert bool((mask[..., ~inside] == (asked.mode == "keep")).all())
            removed = mask if asked.mode == "drop" else ~mask
            if asked.effect == "direct":
                continue
            kl, delta, _ = brute_force.influence(
                model.model, tokens, layout.context, {layer: removed[layer] for layer in range(3)}
            )
            np.testing.assert_allclose(row["kl"], kl[predicting], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(row["nll_delta"], delta[predicting], rtol=1e-5, atol=1e-6)
        [baseline] = [row for row in rows if row["kind"] == "baseline"]
        log_p = brute_force.logits_of_full_pass(model.model, tokens).logits[0].log_softmax(-1)
        told = [-float(log_p[layout.context + t, tokens[layout.context + t + 1]]) for t in predicting]
        np.testing.assert_allclose(baseline["nll"], told, rtol=1e-6)


def test_verification_controls_and_distances(model, tmp_path: Path) -> None:
    """The engine's own second way agrees, and controls are measured where conditions are."""
    asked = request(verify=True, effect="both")
    cuts = documents(asked)
    run = measure(model, cuts, asked, tmp_path / "run", chunk=16)
    assert len(run.verified()) == 3
    assert all(found["of_what_rounding_explains"] < 1 for found in run.verified())
    for document in cuts:
        for row in rows_of(run, document):
            assert row["distance"] is None
            assert row["context"] == document.layout.context
            if row["kind"] != "baseline":
                assert len(row["kl"]) == document.layout.count
            if row["kind"] == "positive_control":
                [thought] = [s for s in document.layout.spans if s.name == "thought"]
                assert set(row["selected"]) == {thought.end - thought.start - 4}
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["documents"][0]["measured"] == [["answer", 0, 7]]
    assert manifest["documents"][0]["spans"][1] == ["thought", 13, 43]
    assert "context" not in manifest["configuration"]
    assert manifest["configuration"]["context_of"] == "prompt+thought"


def comparable(run: Run) -> list[dict]:
    return [
        {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()}
        for row in sorted(run.rows(), key=lambda row: row["document"])
    ]


def test_continued_and_grown_runs_are_the_runs_at_once(model, tmp_path: Path) -> None:
    asked = request(*RULES, "knorm")
    cuts = documents(asked)
    whole = measure(model, cuts, asked, tmp_path / "whole", chunk=16)
    begun = measure(model, cuts, asked, tmp_path / "begun", chunk=16)
    begun.part_path(begun.documents[1]["part"]).unlink()
    assert comparable(measure(model, cuts, asked, tmp_path / "begun", chunk=16)) == comparable(whole)
    few = measure(model, cuts, request(*RULES), tmp_path / "few", chunk=16, source=Source(("x",)))
    assert comparable(add(model, few, cuts, ["knorm"])) == comparable(whole)


def test_a_document_that_cannot_be_measured_is_one_line_and_others_go_on(model, tmp_path: Path) -> None:
    asked = request(budgets=("9",))
    cuts = documents(asked, ((9, 30, 7), (9, 10, 7), (9, 3, 7)))
    run = measure(model, cuts, asked, tmp_path / "run", chunk=16)
    assert len(run.measured()) == 1
    with pytest.raises(UsageError, match=r"3 tokens of `candidates_of` thought .* are protected"):
        measure(model, cuts[2:], asked, tmp_path / "none", chunk=16)
    with pytest.raises(UsageError, match="9 of 6 candidates"):
        asked.at(cuts[1].layout)
    left = placeable(asked, Prepared(tuple(cuts), (), 0))
    assert [cut.length for cut in left.documents] == [cuts[0].length]
    assert len(left.skipped) == 2
    with pytest.raises(UsageError, match="none of 2 documents can be measured"):
        placeable(asked, Prepared(tuple(cuts[1:]), (), 0))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"measure_on": None}, "`context_of` goes with `measure_on`"),
        ({"measure_on": "answer+"}, "is no list of spans"),
        ({"measure_on": "answer+answer"}, "names 'answer' twice"),
        ({"measure_on": "thought+answer"}, "`context_of` and `measure_on` overlap in 'thought'"),
        ({"context_of": None, "measure_on": "thought"}, "`candidates_of` and `measure_on` overlap"),
        ({"segments": 2}, "leave out `segments`"),
        ({"positions_per_bin": 3}, "`positions_per_bin`"),
        ({"continuation_from": "generate"}, "`continuation_from`"),
    ],
)
def test_contradictions_are_refused_before_a_model_is_loaded(changes: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        request(**changes)


SPANS = [Span("system", 1, 5), Span("user", 8, 20), Span("thought", 24, 60), Span("answer", 63, 70)]


@pytest.mark.parametrize(
    ("spans", "choice", "match"),
    [
        (SPANS, ("reply",), r"no span 'reply' \(`measure_on`\); it has system, user, thought, answer"),
        (SPANS[:2], ("answer",), "no span 'answer'"),
        ([], ("answer",), "it has none"),
        (SPANS, ("user", "answer"), "answer does not come before user"),
        (SPANS, ("answer", "user", "thought"), "thought is not part of the context"),
        (SPANS, ("answer", None, "user+thought"), None),
        (SPANS, ("answer", None, "system+thought"), "user lies among the spans of `candidates_of`"),
        ([*SPANS[:3], Span("answer", 63, 65)], ("answer",), "answer has 2 tokens, 3 are needed"),
        ([Span("answer", 0, 9)], ("answer",), "nothing comes before answer"),
    ],
)
def test_documents_that_lack_what_is_asked_for_say_so(spans, choice, match: str | None) -> None:
    found = lay_out(spans, SpanChoice.parse(*choice))
    if match is None:
        assert found.candidates == (8, 60)
    else:
        assert isinstance(found, str)
        assert re.search(match, found), found


def test_without_tokens_between_the_context_gives_its_last_to_the_continuation() -> None:
    """The position before an answer predicts its first token, and must not be part of the context."""
    layout = lay_out([Span("prompt", 0, 10), Span("response", 10, 15)], SpanChoice.parse("response", "prompt"))
    assert (layout.context, layout.continuation, layout.positions) == (9, 6, ((0, 5),))

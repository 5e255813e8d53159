"""From documents to a run folder: conditions, controls, draws, segments, resuming, refusing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from safetensors import safe_open

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import Source, measure, refuse_other_run, request_configuration
from forward_influence.influence.comparison import Influence
from forward_influence.influence.masked import masked_influence
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.continuation import generate_continuation
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.measurement.seeds import derived_seed
from forward_influence.selectors import parse_selector, select
from forward_influence.selectors.selection import Candidates
from forward_influence.storage.run import SCHEMA, open_run
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

SMALL = {"context": 60, "continuation": 40, "protect_last": 8, "budgets": ("0.2",)}


def small(*selectors: str, **changes) -> Request:
    rules = selectors or ("attention:window=8", "entropy", "infokv:window=8", "random")
    return Request(selectors=rules, **{**SMALL, **changes})


def comparable(run) -> list[dict]:
    rows = []
    for row in run.rows():
        rows.append({k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in row.items()})
    return rows


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


def test_a_run_holds_baseline_conditions_and_controls(model, tmp_path):
    run = measure(model, tiny_data.documents(2, 100), small(), tmp_path / "run", chunk=32)
    frame = open_run(tmp_path / "run").curves()
    assert list(frame.columns) == SCHEMA.names
    assert len(frame) == 2 * (1 + 3 + 5 + 2)
    assert sorted(frame["kind"].unique()) == ["baseline", "condition", "noise_floor", "positive_control"]
    conditions = frame[frame["kind"] == "condition"]
    assert all(len(kl) == 40 and np.isfinite(kl).all() and (kl >= 0).all() and kl.max() > 0 for kl in conditions["kl"])
    assert all(s.tolist() == [12] * 6 for s in conditions["selected"])
    assert sorted(conditions[conditions["selector"] == "random"]["seed"].unique()) == [0, 1, 2, 3, 4]
    assert all(np.isnan(n[-1]) and np.isfinite(n[:-1]).all() for n in frame[frame["kind"] == "baseline"]["nll"])
    floor = frame[frame["kind"] == "noise_floor"].iloc[0]
    positive = frame[frame["kind"] == "positive_control"].iloc[0]
    assert floor["distance"].tolist() == list(range(40))
    assert max(floor["kl"]) < 1e-6 < 1e-2 < max(positive["kl"])
    assert positive["selected"].tolist() == [60 - 4 - 8] * 6
    assert run.manifest["execution"]["chunk"] == 32
    assert run.manifest["model"]["full_layers"] == [0, 1, 2]


def test_part_names_are_no_paths(model, tmp_path):
    run = measure(model, tiny_data.documents(1, 100), small("recent"), tmp_path / "deep" / "run")
    inside = [p.relative_to(tmp_path / "deep" / "run").parts for p in (tmp_path / "deep").rglob("*.parquet")]
    assert [parts[0] for parts in inside] == ["parts"]
    assert run.documents[0]["name"] == "doc 0/../x"


def test_rows_equal_a_masked_full_pass(model, tmp_path):
    [document] = tiny_data.documents(1, 100)
    request = small("attention:window=8", mode="keep", budgets=("0.75",))
    row = measure_document(model, document, request, chunk=16).rows[1]
    [tokens] = document.segments
    trace = record(model, tokens[:60], Needs.merge({"window:8"}), span=100, first=4, last=52)
    selection = select(parse_selector("attention:window=8"), trace, 45 - 12, "keep")
    other = masked_influence(model, tokens, trace, selection, "keep")
    np.testing.assert_allclose(row["kl"], other.kl.numpy(), atol=1e-6)
    assert row["selected"] == [45] * 6


def test_draws_differ_between_draws_documents_and_segments_and_repeat_otherwise():
    request = small("random", "recent")
    seeds = {c.rule.seed for d in ("a", "b") for s in (0, 1) for c in expand(request, d, s) if c.draw is not None}
    assert len(seeds) == 5 * 2 * 2
    assert [c.rule for c in expand(request, "a", 0)] == [c.rule for c in expand(request, "a", 0)]
    assert derived_seed(1, "x") == derived_seed("1", "x") != derived_seed(2, "x")


def test_segments_are_rows_of_their_own(model, tmp_path):
    documents = tiny_data.documents(1, 100, segments=3)
    frame = measure(model, documents, small("entropy", segments=3), tmp_path / "run").curves()
    conditions = frame[frame["kind"] == "condition"]
    assert conditions["segment"].tolist() == [0, 1, 2]
    assert len({kl.tobytes() for kl in conditions["kl"]}) == 3
    assert (frame["kind"] == "noise_floor").sum() == 1


def test_generated_continuation_is_the_models_own_and_seeded(model, tmp_path):
    request = small("recent", continuation_from="generate", temperature=0.0)
    [document] = tiny_data.documents(1, 61)
    first = measure_document(model, document, request).rows
    again = measure_document(model, document, request).rows
    np.testing.assert_array_equal(first[1]["kl"], again[1]["kl"])
    ids = document.segments[0][:60]
    generated = model.model.generate(
        ids[None], attention_mask=torch.ones(1, 60), max_new_tokens=40, min_new_tokens=40, do_sample=False
    )[0, 60:]
    with torch.no_grad():
        logits = model.model(torch.cat([ids, generated])[None]).logits[0, 60:-1]
    wanted = torch.nn.functional.cross_entropy(logits, generated[1:], reduction="none")
    np.testing.assert_allclose(first[0]["nll"][:-1], wanted.numpy(), atol=1e-4)
    hot = [
        measure_document(model, document, small("recent", continuation_from="generate", seed=s)).rows[0]["nll"]
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(hot[0], hot[1])
    assert not np.array_equal(hot[0], hot[2])


def test_verify_passes_and_notices_a_wrong_engine(model, monkeypatch):
    [document] = tiny_data.documents(1, 100)
    measured = measure_document(model, document, small(verify=True))
    assert measured.timings["verified"][0]["of_what_rounding_explains"] < 0.1
    from forward_influence.influence.effects import total as module

    honest = module.masked_influence

    def wrong(*args, **kwargs):
        influence = honest(*args, **kwargs)
        influence.kl.mul_(factors[-1])
        return influence

    monkeypatch.setattr(module, "masked_influence", wrong)
    factors = [0.0, 1.01, 1.5]
    while factors:
        with pytest.raises(ForwardInfluenceError, match="differs from a masked full pass"):
            measure_document(model, document, small(verify=True))
        factors.pop()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_verify_can_fail_in_16_bits(dtype, monkeypatch):
    from forward_influence.influence.effects import total as module

    model = tiny_data.model(dtype=dtype)
    [document] = tiny_data.documents(1, 100)
    request = small("attention:window=8", verify=True)
    assert measure_document(model, document, request).timings["verified"][0]["of_what_rounding_explains"] <= 1
    nothing = torch.zeros(40)
    monkeypatch.setattr(module, "masked_influence", lambda *a, **k: Influence(nothing, nothing, nothing.bool()))
    with pytest.raises(ForwardInfluenceError, match="differs from a masked full pass"):
        measure_document(model, document, request)


def test_what_a_model_writes_follows_its_distribution_alone(model):
    """A penalty or a beam in the model's own generation settings would bend what is measured."""
    [context] = tiny_data.documents(1, 40)[0].segments
    plain = generate_continuation(model, context, 20, 0.0, 1)
    settings = model.model.generation_config
    before = settings.repetition_penalty, settings.num_beams
    settings.repetition_penalty, settings.num_beams = 5.0, 3
    try:
        assert torch.equal(generate_continuation(model, context, 20, 0.0, 1), plain)
    finally:
        settings.repetition_penalty, settings.num_beams = before


def test_generated_continuations_are_saved_with_the_selections(model, tmp_path):
    request = small("recent", continuation_from="generate", save_selections=True, budgets=("0.2", "0.4"))
    run = measure(model, tiny_data.documents(1, 100), request, tmp_path / "run")
    with safe_open(run.selections_path(run.documents[0]["part"]), "pt") as file:
        assert file.get_tensor("continuation/0").shape == (40,)
        assert {f"scores/{i}" for i in (1,)} <= set(file.keys())


def test_a_run_is_not_continued_on_another_device(model, tmp_path):
    documents = tiny_data.documents(2, 100)
    run = measure(model, documents[:1], small("recent"), tmp_path / "run")
    manifest = json.loads((run.folder / "manifest.json").read_text())
    manifest["execution"]["device"] = "cuda:0"
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"was begun on cuda:0, .* than cpu's"):
        measure(model, documents[:1], small("recent"), tmp_path / "run")


def test_saved_selections_hold_tokens_scores_and_choices(model, tmp_path):
    request = small("attention:window=8", "entropy", save_selections=True)
    run = measure(model, tiny_data.documents(1, 100), request, tmp_path / "run")
    rows = list(run.rows())
    with safe_open(run.selections_path(run.documents[0]["part"]), "pt") as file:
        assert len(json.loads(file.metadata()["pieces/0"])) == 60
        assert json.loads(file.metadata()["candidates/0"]) == [4, 52]
        for i, row in enumerate(rows):
            if row["kind"] == "condition":
                chosen, scores = file.get_tensor(f"selection/{i}"), file.get_tensor(f"scores/{i}")
                assert chosen.sum(-1).flatten().tolist() == row["selected"].tolist()
                scores, chosen = scores.expand(chosen.shape)[..., 4:52], chosen[..., 4:52]
                worst_chosen = scores.masked_fill(~chosen, torch.inf).amin(-1)
                assert bool((worst_chosen >= scores.masked_fill(chosen, -torch.inf).amax(-1)).all())
        assert file.get_tensor(f"scores/{len(rows) - 3}").shape[:2] == (1, 1), "entropy is stored once, not per head"


def test_the_same_command_continues_and_gives_the_same(model, tmp_path):
    documents = tiny_data.documents(3, 100)
    whole = measure(model, documents, small(), tmp_path / "whole")
    run = measure(model, documents, small(), tmp_path / "broken")
    victim = run.part_path(run.documents[1]["part"])
    victim.write_bytes(victim.read_bytes()[:-40])
    other = run.part_path(run.documents[0]["part"])
    stamp = other.stat().st_mtime_ns
    messages: list[str] = []

    class Listening:
        def begin(self, total_tokens, what): ...
        def advance(self, tokens, what): ...
        def end(self): ...
        def message(self, text):
            messages.append(text)

    continued = measure(model, documents, small(), tmp_path / "broken", progress=Listening())
    assert any("does not read back" in m for m in messages)
    assert comparable(continued) == comparable(whole)
    assert other.stat().st_mtime_ns == stamp, "what was measured is not measured again"


def test_another_configuration_is_refused_with_the_fields(model, tmp_path):
    documents = tiny_data.documents(1, 100)
    measure(model, documents, small("recent"), tmp_path / "run")
    with pytest.raises(UsageError, match=r'selectors: \["recent"\] there, \["first"\] now'):
        measure(model, documents, small("first"), tmp_path / "run")
    wanted = request_configuration(model.spec, documents, small("recent", seed=3), Source())
    with pytest.raises(UsageError, match="seed: 0 there, 3 now"):
        refuse_other_run(tmp_path / "run", wanted)
    refuse_other_run(tmp_path / "run", request_configuration(model.spec, documents, small("recent"), Source()))
    refuse_other_run(tmp_path / "elsewhere", wanted)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="is not a run folder"):
        measure(model, documents, small("recent"), tmp_path / "mine")


def test_a_document_that_fails_is_named_and_the_rest_measured(model, tmp_path, monkeypatch):
    from forward_influence.execution import executors

    documents = tiny_data.documents(3, 100)
    honest = executors.measure_document

    def sometimes(model, document, *args, **kwargs):
        if document is documents[1]:
            raise MemoryError
        return honest(model, document, *args, **kwargs)

    monkeypatch.setattr(executors, "measure_document", sometimes)
    run = measure(model, documents, small("recent"), tmp_path / "run")
    assert len(run.measured()) == 2
    monkeypatch.setattr(executors, "measure_document", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ForwardInfluenceError, match="no document could be measured; the first: out of memory"):
        measure(model, documents, small("first"), tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selectors": ("atention",)}, "did you mean 'attention'"),
        ({"selectors": ("attention:windw=3",)}, "did you mean 'window'"),
        ({"selectors": ("attention:window=x",)}, "not a whole number"),
        ({"selectors": ()}, "no rule to measure"),
        ({"selectors": ("recent", "recent")}, "given twice"),
        ({"budgets": ("0",)}, "selects nothing"),
        ({"budgets": ("-3",)}, "selects nothing"),
        ({"budgets": ("1.5",)}, "not below 1"),
        ({"budgets": ("many",)}, "not a number"),
        ({"budgets": ("0.2", "0.2")}, "given twice"),
        ({"budgets": ("49",)}, "49 of 48 candidates"),
        ({"budgets": ("0.5",), "mode": "keep"}, "fewer than 32 are left"),
        ({"mode": "replace"}, "`mode` replace is unknown"),
        ({"continuation": 1}, "too small"),
        ({"protect_first": 60}, "leave none of 60"),
        ({"temperature": float("nan")}, "`temperature`"),
        ({"continuation_from": "txt"}, "did you mean 'text'"),
    ],
)
def test_bad_requests_are_refused_in_one_line_before_any_model(changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        Request(**{"selectors": ("recent",), **SMALL, **changes})
    assert "\n" not in str(caught.value)


def test_the_window_of_a_rule_is_protected_for_all():
    request = Request(selectors=("attention:window=32", "random"), context=100, continuation=10, protect_last=8)
    assert request.candidates == Candidates(100, 4, 68)
    assert request.configuration()["protect_last"] == 32


def test_beyond_the_models_positions_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match="made for 512 positions"):
        measure(model, [], Request(selectors=("recent",), context=400, continuation=200), tmp_path / "run")


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
import tiny_data
from forward_influence.execution.run import measure
from test_measurement import small
print("measuring", flush=True)
measure(tiny_data.model(), tiny_data.documents(12, 100), small(), sys.argv[1], chunk=16)
"""


def test_killed_in_the_middle_and_started_again_equals_an_uninterrupted_run(tmp_path):
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *places], stdout=subprocess.PIPE
    )
    parts = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = len(list(parts.glob("*.parquet")))
    assert 3 <= done < 12, "killed in the middle"
    threads = torch.get_num_threads()
    model, documents = tiny_data.model(), tiny_data.documents(12, 100)
    continued = measure(model, documents, small(), tmp_path / "killed", chunk=64)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(continued.manifest["execution"]["threads"])
    try:
        whole = measure(model, documents, small(), tmp_path / "whole", chunk=16)
    finally:
        torch.set_num_threads(threads)
    assert comparable(continued) == comparable(whole)
    assert len(continued.measured()) == 12

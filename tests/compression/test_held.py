"""What compressors hold, pin and choose: against plain arithmetic, and against what the cache itself holds."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import lru_cache

import plain_held
import pytest
import tiny_data
import torch
from tiny import tiny_model
from visible_sets import generated, prompt

from forward_influence.compression import NAMED, Outcome, compress, compressor_names, make_compressor
from forward_influence.compression.contenders import Contender, contenders
from forward_influence.errors import UsageError
from forward_influence.execution.extend import add
from forward_influence.execution.run import measure
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.tracing.recorder import record

PROMPT, NEW = 70, 46
READ = PROMPT + NEW - 1  # the last token is written, never read
LAYERS, HEADS = 3, 2

SPECS = {"mix": "mix:0.5*attention+0.5*entropy", "product": "product:attention*entropy"}
SPECS |= {name: f"{name}:asked=false" for name in ("kvzip", "kvzip-plus")}
#: A rule that looks ahead cannot compress.
NAMES = [n for n in compressor_names() if n != "oracle"]


@lru_cache(maxsize=1)
def model():
    return tiny_model("llama")


def held_budget(name: str) -> str:
    return "held=112" if name in plain_held.WHOLE_PROMPT else "held=24"


def grain_of(chosen: list[list[set[int]]]) -> str | None:
    """By definition, from the tokens that each layer and head chose; those that chose none are left out."""
    layers = [[tokens for tokens in heads if tokens] for heads in chosen]
    layers = [heads for heads in layers if heads]
    if not layers:
        return None
    if any(tokens != heads[0] for heads in layers for tokens in heads):
        return "entry"
    return "token" if all(heads[0] == layers[0][0] for heads in layers) else "layer"


def run(name: str, budget: str, prefill: bool, every: int | None, protect_last: float):
    """What it came to, and what every layer and head holds after each pass."""
    made = Contender(SPECS.get(name, name), budget, every, 4, protect_last)
    compressor = dataclasses.replace(
        made.compressor, schedule=dataclasses.replace(made.compressor.schedule, prefill=prefill)
    )
    with compress(model(), compressor) as cache:
        _, _, snapshots = generated(model(), cache, PROMPT, NEW)
    return cache.stats, snapshots


SCHEDULES = [(True, None), (True, 10), (True, 12), (False, 10), (False, 45), (False, 46)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", ["0.3", "0.1", "24", "held"])
def test_counts_are_those_of_plain_arithmetic_and_of_the_cache(name, budget):
    budget = held_budget(name) if budget == "held" else budget
    removed = 0
    for number, (prefill, every) in enumerate(SCHEDULES):
        if every is None and name in plain_held.WHOLE_PROMPT:
            continue
        if every is not None and "kvzip" in name:  # reads a prompt again, once
            continue
        protect_last = (8, 0.25, 64, 0.1, 3, 0.5)[number]
        stats, snapshots = run(name, budget, prefill, every, protect_last)
        moments = plain_held.moments(PROMPT, READ, prefill, every) if name != "full" else []
        assert [event.seen for event in stats.events] == moments
        plain = [plain_held.after(name, budget, PROMPT, seen, protect_last) for seen in moments]
        for event, wanted in zip(stats.events, plain, strict=True):
            assert int(event.held.sum()) == wanted.held * LAYERS * HEADS
        outcome = Outcome.after(stats)
        assert outcome.most == plain_held.most(plain, PROMPT, READ)
        if not plain:
            assert (outcome.held, outcome.pinned, outcome.chosen, outcome.ends) == (READ, READ, 0, None)
            continue
        last = plain[-1]
        there = dict(snapshots.steps)[last.seen]
        counts = [[len(tokens) for tokens in heads] for heads in there.values()]
        assert outcome.counts.tolist() == counts
        assert outcome.held == last.held == sum(map(sum, counts)) / (LAYERS * HEADS)
        if last.everything:
            assert (outcome.pinned, outcome.chosen, outcome.ends, outcome.grain) == (last.held, 0, None, None)
            continue
        removed += 1
        assert outcome.ends == (last.first, last.last)
        assert (outcome.pinned, outcome.chosen) == (last.first + last.last, last.chosen)
        chosen = []
        for heads in there.values():
            for tokens in heads:
                assert tokens[: last.first] == list(range(last.first)), "pinned at the start"
                assert tokens[len(tokens) - last.last :] == list(range(last.seen - last.last, last.seen)), (
                    "and at the end"
                )
            chosen.append([set(tokens[last.first : len(tokens) - last.last]) for tokens in heads])
        assert outcome.grain == grain_of(chosen)
    assert removed or name == "full" or (name == "rpc" and budget in ("0.3", "24")), "something was left to remove"


def test_the_issues_figures():
    """200 tokens of prompt, 120 after it, a budget of 0.3."""
    wanted = {"rpc": 268, "random-protected": 236, "infokv": 96, "random": 96}
    for name, count in wanted.items():
        with compress(model(), name, 0.3, every=40) as cache, torch.no_grad():
            for part in prompt(320)[0].split([200, 40, 40, 40]):
                model()(part[None], past_key_values=cache)
        assert Outcome.after(cache.stats).held == count
    assert plain_held.after("infokv", "0.1", 500, 500, 64) == plain_held.Held(500, 4, 21, 25)
    compressor = make_compressor("infokv", "0.1")
    assert compressor.pinned(compressor.kept(500, 500), 500) == (4, 25)


@pytest.mark.parametrize("name", ["snapkv", "infokv", "h2o", "pyramidkv", "adakv", "streamingllm", "random"])
@pytest.mark.parametrize("budget", ["0.3", "0.1", "40", "held=40"])
@pytest.mark.parametrize("protect_last", [None, 8, 0.25])
def test_a_recorded_pass_says_the_same(name, budget, protect_last):
    """One recorded pass for all compressors, as `evaluate` without --every goes."""
    data = tiny_data.model(dtype=torch.float64)
    contender = Contender(name, budget, None, 4, protect_last)
    trace = record(data, prompt(200)[0], contender.compressor.needs, span=220)
    keep = contender.keep(trace)
    outcome = contender.outcome(trace, keep, 7)
    plain = plain_held.after(name, budget, 200, 200, 64 if protect_last is None else protect_last)
    assert (outcome.held, outcome.pinned, outcome.chosen) == (plain.held, plain.first + plain.last, plain.chosen)
    assert outcome.ends == (plain.first, plain.last)
    assert outcome.most == plain.held + 7
    chosen = [
        [set(row.nonzero()[:, 0].tolist()) & set(range(plain.first, 200 - plain.last)) for row in layer]
        for layer in keep
    ]
    assert outcome.grain == grain_of(chosen)
    with compress(data, contender.compressor) as cache, torch.no_grad():
        data.model(prompt(200), past_key_values=cache, logits_to_keep=1)
    live = Outcome.after(cache.stats)
    assert (live.held, live.ends, live.grain) == (outcome.held, outcome.ends, outcome.grain)


# --- measure ---

N, M = 64, 40


def asked(*compressors: str, **changes) -> Request:
    settings = {"selectors": (), "context": N, "continuation": M, "every": 12}
    return Request(compressors=compressors, **{**settings, **changes})


def rows(request: Request) -> list[dict]:
    [document] = tiny_data.documents(1, N + M)
    found = measure_document(tiny_data.model(), document, request, controls=False).rows
    return [row for row in found if row["kind"] == "condition"]


@pytest.mark.parametrize("protect_last", [None, 8, "0.25"])
@pytest.mark.parametrize("budget", ["0.4", "0.2", "20"])
def test_rows_of_a_run_say_what_was_held_pinned_and_chosen(budget, protect_last):
    names = [*NAMED][1:]
    request = asked(*names, budgets=(budget,), protect_last=protect_last, draws=1)
    number = {None: 64, 8: 8, "0.25": 0.25}[protect_last]
    for row in rows(request):
        moments = plain_held.moments(N, N + M, True, 12)
        plain = [plain_held.after(row["selector"], budget, N, seen, number) for seen in moments]
        last = plain[-1]
        assert row["held"] == last.held == sum(row["selected"]) / len(row["selected"])
        assert (row["pinned"], row["chosen"]) == (
            (last.held, 0) if last.everything else (last.first + last.last, last.chosen)
        )
        assert row["held_most"] == plain_held.most(plain, N, N + M)
        assert json.loads(row["parameters"])["ends"] == (None if last.everything else [last.first, last.last])


def test_matched_all_hold_the_same_number_after_every_compression():
    names = ("infokv", "h2o", "adakv", "pyramidkv", "rpc:window=6", "random-protected", "random")
    request = asked(*names, match_held=80, draws=1)
    assert [c.budget for c in request.contenders] == ["held=80"] * 7
    assert request.configuration()["match_held"] == (80,)
    assert "budgets" not in request.configuration()
    for row in rows(request):
        assert (row["held"], row["budget"]) == (80, "held=80")
    for name in names:
        with compress(model(), Contender(name, "held=80", 12).compressor) as cache, torch.no_grad():
            for part in prompt(N + M)[0].split([N, 12, 12, 12, 4]):
                model()(part[None], past_key_values=cache)
        held = [float(event.held.double().mean()) for event in cache.stats.events]
        assert held == [64, 76, 80, 80], "as many as are seen, until there are more"


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (("rpc",), {"match_held": 64}, "rpc keeps the prompt whole, 64 tokens and a window of 32 on top.* at least 97"),
        (("rpc:window=6",), {"match_held": 70}, "hold at least 71, or leave rpc:window=6 out"),
        (("random-protected",), {"match_held": 60}, "keeps the prompt whole, 64 tokens: to hold 60 .* at least 66"),
        (("infokv",), {"match_held": 100}, "no more than 100 tokens are seen when a cache is compressed"),
        (("infokv",), {"match_held": 64, "every": None}, "no more than 64 tokens are seen"),
        (("infokv",), {"match_held": 0}, "no number of entries to hold"),
        (("infokv",), {"match_held": (20, 20)}, "given twice"),
        (("infokv",), {"match_held": 20, "budgets": ("0.2",)}, "give one of them"),
        ((), {"match_held": 20, "selectors": ("recent",), "every": None}, "name one with `compressors`"),
        (("infokv",), {"protect_last": 0.6}, "at most 0.5"),
        (("infokv",), {"protect_last": "half"}, "not a number"),
        (("infokv",), {"protect_last": -1}, "negative"),
        (("infokv",), {"protect_last": "0.0"}, "more than 0"),
        (("infokv",), {"protect_last": 0.25, "selectors": ("recent",)}, "give a count like 64"),
        (("infokv",), {"protect_last": 0}, "observes from the last tokens that are protected, and none is"),
        (("attention:window=4",), {"selectors": ("attention:window=4",), "mode": "keep", "protect_last": 4,
                                   "budgets": ("48",)}, "as a rule and as a compressor"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_or_protected_is_refused_before_anything_is_loaded(names, changes, words):
    with pytest.raises(UsageError, match=words):
        asked(*names, **changes)


def test_a_prompt_that_is_kept_whole_is_refused_while_generating_too():
    with (
        pytest.raises(UsageError, match="hold at least 103, or leave rpc out"),
        compress(model(), "rpc", "held=80", every=10) as cache,
    ):
        generated(model(), cache)
    assert make_compressor("rpc", "held=103", every=10).kept(200, 70) == 103
    for written in ("held=", "held=0.3", "held=-4", "held=0"):
        with pytest.raises(UsageError, match="entries to hold"):
            make_compressor("infokv", written)
    with pytest.raises(UsageError, match="not a number"):
        Request(selectors=("recent",), budgets=("held=20",))


def test_one_rule_protects_for_all_compressors_of_a_comparison():
    """The widest window for all; what is asked for instead of it; never silently another number than the others'."""
    made = contenders(["attention:window=100", "infokv", "knorm"], ["0.4"])
    assert {c.compressor.protect_last for c in made} == {100}
    assert {c.compressor.protect_last for c in contenders(["attention", "rpc:window=90"], ["0.4"], 10)[:2]} == {64}
    assert contenders(["rpc:window=90"], ["0.4"], 10, protect_last=8)[-1].compressor.protect_last == 90
    narrow = asked("attention:window=100", "infokv", "knorm", protect_last=8, budgets=("0.4",))
    assert {c.compressor.protect_last for c in narrow.contenders} == {8}
    assert narrow.remarks == (
        "attention:window=100, infokv observe from the last 8 tokens, as many as are protected, not from 100",
    )
    beside = asked("infokv", selectors=("attention:window=20",), protect_last=8, budgets=("0.2",))
    assert beside.protected_last == beside.contenders[0].protect_last == 20, "never fewer than a rule observes from"
    assert asked("knorm", protect_last=0.25).configuration()["protect_last"] == 0.25


def test_protect_last_reaches_the_compressors_of_a_run():
    """It was read and left aside: every compressor kept its own 64."""
    few, many = (rows(asked("knorm", budgets=("0.4",), protect_last=last)) for last in (2, 16))
    assert [r["pinned"] for r in few + many] == [6, 20]
    assert not torch.equal(torch.tensor(few[0]["kl"]), torch.tensor(many[0]["kl"]))
    sinks = rows(asked("knorm", budgets=("0.4",), protect_first=0, protect_last=2))
    assert sinks[0]["pinned"] == 2


def test_budgets_that_no_rule_could_drop_are_a_compressors_own(tmp_path):
    """Ninety percent kept is more than there are candidates to drop: of a compressor that is no mistake."""
    run = measure(tiny_data.model(), tiny_data.documents(1, N + M), asked("knorm", budgets=("0.9",)), tmp_path / "run")
    assert run.curves().query("kind == 'condition'")["held"].tolist() == [math.floor(0.9 * 100)]


def test_kept_tokens_of_rules_are_counted_alike(tmp_path):
    made = {"context": N, "continuation": M, "protect_last": 8, "draws": 1}
    request = Request(selectors=("attention:window=8", "random"), budgets=("50",), mode="keep", **made)
    for row in rows(request):
        assert (row["held"], row["pinned"], row["chosen"], row["held_most"]) == (50, 12, 38, 50 + M)
        assert json.loads(row["parameters"])["ends"] == [4, 8]
    dropping = dataclasses.replace(request, mode="drop", budgets=("0.2",))
    assert all(row["held"] is None and row["pinned"] is None for row in rows(dropping))


def test_adding_to_a_run_that_matches_sizes(tmp_path):
    data, documents = tiny_data.model(), tiny_data.documents(1, N + M)
    request = asked("infokv", match_held=70, protect_last="0.25")
    one = measure(data, documents, request, tmp_path / "one")
    grown = add(data, one, documents, (), compressors=("knorm",))
    both = measure(data, documents, asked("infokv", "knorm", match_held=70, protect_last=0.25), tmp_path / "both")
    assert grown.configuration == both.configuration
    columns = ["selector", "budget", "held", "pinned", "chosen", "parameters"]
    assert grown.curves()[columns].equals(both.curves()[columns])
    with pytest.raises(UsageError, match="no budget, which rules need"):
        add(data, grown, documents, ("recent",))

"""Effects as objects: whatever is registered can be measured, planned, verified and mapped, by its name alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_data
import torch

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.effects import Effect, effect_of, effects_of, names, registry
from forward_influence.influence.effects.direct import DIRECT
from forward_influence.influence.effects.total import TOTAL
from forward_influence.measurement.conditions import expand
from forward_influence.measurement.controls import NOISE_POSITIONS, POSITIVE_POSITIONS
from forward_influence.measurement.costs import plan
from forward_influence.measurement.leave_one_out import MapRequest, influence_map
from forward_influence.measurement.memory import peak
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import document_tokens
from forward_influence.models.sizes import Sizes

SIZES = Sizes(layers=2, query_heads=4, kv_heads=2, head_size=8, hidden=32, intermediate=48, vocabulary=97)
N, M = 60, 40


class Halved(Effect):
    """A toy that touches nothing but itself: states half way between the full cache's and the total effect's."""

    name = "halved"
    replays = True

    def hidden(self, continuation, branch, length, positions):
        def full(room):
            return continuation.trace.cache.branch(None, room)

        one, other = (TOTAL.hidden(continuation, cache, length, positions) for cache in (full, branch))
        return (one + other) / 2

    def runs(self, length, measured):
        return 2 * length

    def extra_keys(self, chunk):
        return 7 * chunk

    def verified(self, count):
        return torch.tensor([0, count - 1])

    def masked_kl(self, model, tokens, trace, removed, distances, fills=None):
        """By definition, from states of the model's own code: no chunks, no branches, KL summed word by word."""
        import brute_force

        gone = {layer: removed.mask[i] for i, layer in enumerate(removed.layers)}
        states = []
        for wanted in (None, gone):
            found = brute_force.logits_of_full_pass(
                model.model, tokens.cpu(), wanted, after=trace.n, output_hidden_states=True
            )
            states.append(found.hidden_states[-1][0, trace.n :])
        head = model.model.get_output_embeddings()
        with torch.no_grad():
            p, q = head(states[0]), head((states[0] + states[1]) / 2)
        return brute_force.kl_by_definition(p, q)[distances]


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setitem(registry._effects, "halved", Halved())
    return effect_of("halved")


@pytest.fixture(scope="module")
def model():
    return tiny_data.model()


def asked(**changes) -> Request:
    given = {"context": N, "continuation": M, "budgets": ("0.3",), "protect_last": 8, "seed": 4}
    return Request(**{**given, "selectors": ("attention:window=8", "entropy"), **changes})


def test_the_effects_there_are():
    assert names() == ("total", "direct")
    assert effects_of("both") == (TOTAL, DIRECT)
    assert effects_of("direct") == (effect_of("direct"),) == (DIRECT,)
    with pytest.raises(UsageError, match="effect 'indirect' is unknown; it is total or direct"):
        effects_of("indirect")


def test_an_effect_of_ones_own_is_measured_verified_and_written_by_its_name(halved, model, tmp_path):
    """One class in one file: `--effect halved` runs, its controls run as it does, and its rows bear its name."""
    documents = tiny_data.documents(2, N + M)
    run = measure(model, documents, asked(effect="halved", verify=True), tmp_path / "run", chunk=16)
    for document in run.documents:
        rows = run.part(document["part"]).rows
        assert {row["effect"] for row in rows if row["kind"] != "baseline"} == {"halved"}
        assert {row["kind"] for row in rows} == {"baseline", "condition", "noise_floor", "positive_control"}
        assert max(row["kl"].max() for row in rows if row["kind"] == "noise_floor") < 1e-8
        [verified] = json.loads(run.timings_path(document["part"]).read_text())["verified"]
        assert verified["of_what_rounding_explains"] < 1
    labels = [condition.label for condition in expand(asked(effect="halved"), "", 0)]
    assert labels == ["attention:window=8 at 0.3 halved", "entropy at 0.3 halved"]


def test_what_it_measures_is_what_it_says(halved, model, tmp_path):
    documents = tiny_data.documents(1, N + M)
    parts = {}
    for name in ("total", "halved"):
        run = measure(model, documents, asked(effect=name), tmp_path / name, chunk=16)
        rows = run.part(run.documents[0]["part"]).rows
        parts[name] = np.array([row["kl"] for row in rows if row["kind"] == "condition"])
    assert 0 < parts["halved"].mean() < parts["total"].mean()


def test_a_second_way_that_finds_something_else_stops_the_document(halved, model, tmp_path, monkeypatch):
    monkeypatch.setattr(Halved, "masked_kl", TOTAL.masked_kl)
    with pytest.raises(ForwardInfluenceError, match="halved differs from a masked full pass"):
        measure(model, tiny_data.documents(1, N + M), asked(effect="halved", verify=True), tmp_path / "run", chunk=16)


def test_it_is_asked_what_it_costs(halved):
    usual, own = asked(), asked(effect="halved")
    assert document_tokens(own) - document_tokens(usual) == 2 * M  # two conditions, each twice as long
    assert plan(SIZES, own, 1).operations > plan(SIZES, usual, 1).operations
    total, found = (peak(SIZES, N, M, 2, 16, (effect,)) for effect in (TOTAL, halved))
    assert (total.own_entries, found.own_entries) == (0, SIZES.cache_bytes(M))
    assert found.continuation - total.continuation == 16 * 7 * 16 * (1 + SIZES.itemsize)


@pytest.mark.parametrize("asked_for", ["total", "direct", "both"])
def test_memory_of_controls_is_that_of_those_that_run(asked_for):
    effects = effects_of(asked_for)
    found = peak(SIZES, N, 1000, 1, 16, effects)
    controls = (NOISE_POSITIONS + POSITIVE_POSITIONS) * len(effects)
    assert found.hidden_states == (1000 * 2 + controls) * SIZES.hidden * SIZES.itemsize


def test_a_map_of_it(halved, model, tmp_path):
    [tokens] = tiny_data.documents(1, 30)[0].segments
    wanted = {name: MapRequest(10, 20, block=5, effect=name, bin_width=20) for name in ("total", "halved")}
    maps = {name: influence_map(model, tokens, ask, tmp_path / f"{name}.parquet") for name, ask in wanted.items()}
    assert 0 < maps["halved"]["kl"].max() < maps["total"]["kl"].max()
    with pytest.raises(UsageError, match="`effect` own is unknown; it is total, direct or halved"):
        MapRequest(10, 20, effect="own")


def test_without_it_nobody_knows_it():
    with pytest.raises(UsageError, match=r"`effect` halved is unknown.*it is total, direct or both"):
        asked(effect="halved")

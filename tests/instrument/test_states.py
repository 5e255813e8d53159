"""Layers that hold more than entries: states are carried and copied, index keys go with their entries."""

from __future__ import annotations

import brute_force
import pytest
import torch
from families import tiny_family
from float64 import Float64

from forward_influence.compression import compress
from forward_influence.errors import UsageError
from forward_influence.influence.measure import forward_influence
from forward_influence.instrument.architecture import examine
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.forward import continuation_hidden
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.layer_kinds import SelectiveIndexedLayer
from forward_influence.instrument.states import states
from forward_influence.instrument.steps import Steps
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record
from forward_influence.tracing.store import packed, unpacked

N, M = 31, 14
#: States alone and beside entries, of a convolution, and of the two scans that want their tokens in another way.
STATEFUL = ("qwen3_next", "falcon_h1", "lfm2", "jamba", "bamba")


def case(name):
    model = wrap_model(tiny_family(name))
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    trace = record(model, tokens[:N], span=N + M, chunk=13)
    mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
    return model, tokens, trace, Selection(mask, trace.layers)


def all_states(cache):
    return {
        f"{i}/{name}": state.clone() for i, layer in enumerate(cache.layers) for name, state in states(layer).items()
    }


@pytest.mark.parametrize("name", STATEFUL)
def test_a_branch_goes_on_with_states_of_its_own(name):
    with Float64():
        model, tokens, trace, selection = case(name)
        before = all_states(trace.cache)
        assert before and all(float(state.abs().max()) > 0 for state in before.values())
        both = [forward_influence(model, trace, tokens[N:], selection, chunk=5)[0].kl for _ in range(2)]
        after = all_states(trace.cache)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(*both)
    assert float(both[0].max()) > 1e-4


@pytest.mark.parametrize("name", STATEFUL)
def test_a_context_that_states_forgot_would_be_seen(name):
    """What the states say of the context matters in these tiny models, so that losing it cannot pass unnoticed."""
    with Float64(), torch.no_grad():
        model, tokens, trace, _ = case(name)
        found = []
        for forgets in (False, True):
            cache = trace.cache.branch(None, M)
            for layer in cache.layers if forgets else ():
                for state in states(layer).values():
                    state.zero_()
            with Instrument(model.model, cache=cache) as instrument:
                hidden = continuation_hidden(model.model, tokens[N:], instrument, M)
            found.append(model.anatomy.head(hidden))
    assert float(brute_force.kl_by_definition(*found).max()) > 1e-3


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "glm_moe_dsa", "gemma3n_text", "deepseek_v3"])
def test_a_kept_trace_is_the_recorded_one(name):
    with Float64():
        model, tokens, trace, selection = case(name)
        again = unpacked(packed(trace), model, trace.needs, 0, N, False)
        kept, recorded = (forward_influence(model, t, tokens[N:], selection, chunk=5)[0] for t in (again, trace))
    assert torch.equal(kept.kl, recorded.kl)
    assert again.cache.bytes() == trace.cache.bytes()


def test_bytes_count_states_and_index_keys():
    hybrid, indexed = case("qwen3_next")[2], case("glm_moe_dsa")[2]
    expected = sum(t.numel() * t.element_size() for t in all_states(hybrid.cache).values())
    for layer in hybrid.layers:
        expected += hybrid.cache.layers[layer].bytes()
    assert hybrid.cache.bytes() == expected > sum(hybrid.cache.layers[i].bytes() for i in hybrid.layers)
    layer = indexed.cache.layers[0]
    entries = sum(t.numel() * t.element_size() for t in (layer.keys, layer.values, layer.indexer_keys))
    assert layer.bytes() == entries


def test_index_keys_go_where_their_entries_go():
    layer = SelectiveIndexedLayer()
    layer.update(torch.rand(1, 1, 6, 3), torch.rand(1, 1, 6, 2))
    layer.update_indexer(torch.arange(6.0)[None, :, None])
    part = layer.branch(torch.tensor([[1, 4, 5]]), None, room=1)
    assert part.indexer_keys.flatten().tolist() == [1, 4, 5]
    part.update(torch.rand(1, 1, 1, 3), torch.rand(1, 1, 1, 2))
    part.update_indexer(torch.full((1, 1, 1), 6.0))
    assert part.indexer_keys.flatten().tolist() == [1, 4, 5, 6]
    assert layer.indexer_keys.shape[1] == 6
    part.crop(-1)
    assert part.indexer_keys.flatten().tolist() == [1, 4, 5]


def test_heads_with_one_index_key_cannot_hold_different_tokens():
    layer = SelectiveIndexedLayer()
    layer.update(torch.rand(1, 2, 6, 3), torch.rand(1, 2, 6, 2))
    layer.update_indexer(torch.rand(1, 6, 4))
    with pytest.raises(UsageError, match="per=layer"):
        layer.branch(torch.tensor([[1, 4], [2, 4]]), None, room=1)


def test_a_layer_with_states_takes_no_tokens_back():
    model, _, trace, _ = case("falcon_h1")
    with pytest.raises(UsageError, match="cannot take tokens back"):
        trace.cache.layers[trace.layers[0]].crop(-1)
    assert model.anatomy.stateful and not model.anatomy.replayable


@pytest.mark.parametrize(
    ("steps", "count", "seen", "wanted"),
    [
        (Steps(), 10, 0, [4, 4, 2]),
        (Steps(), 9, 5, [4, 4, 1]),
        (Steps(joined=True), 9, 5, [4, 5]),
        (Steps(joined=True), 8, 5, [4, 4]),
        (Steps(joined=True), 1, 5, [1]),
        (Steps(single=True), 6, 0, [6]),
        (Steps(single=True), 3, 6, [1, 1, 1]),
    ],
)
def test_lengths_of_passes(steps, count, seen, wanted):
    assert steps.lengths(count, seen, chunk=4) == wanted


def test_what_was_found_of_how_tokens_may_follow():
    found = {name: wrap_model(tiny_family(name)).anatomy for name in ("llama", *STATEFUL)}
    assert found["llama"].steps == Steps() and found["llama"].replayable
    assert found["jamba"].steps.single and not found["bamba"].steps.single
    assert found["bamba"].steps.numbered
    assert found["bamba"].steps.described() == "chunks, positions given"
    assert all(found[name].steps.joined for name in ("qwen3_next", "falcon_h1", "lfm2", "bamba"))


@pytest.mark.parametrize("name", ["jamba", "bamba", "qwen3_next"])
def test_a_prompt_that_comes_in_pieces_is_read_as_it_has_to_be(name):
    """As `generate` gives it with `prefill_chunk_size`: Mamba 1 would start from nothing in every piece."""
    with Float64(), torch.no_grad():
        raw = tiny_family(name)
        tokens = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(5))
        last = []
        for size in (40, 16):
            with compress(raw, "knorm", budget=0.5, protect_last=4, prefill=False, every=1000) as cache:
                for part in tokens.split(size, dim=1):
                    last.append(raw(part, past_key_values=cache).logits[0, -1])
        wanted = brute_force.logits_of_full_pass(raw, tokens[0]).logits[0, -1]
    for found in (last[0], last[-1]):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_states_of_several_tokens_at_once_cannot_be_given_where_they_come_alone():
    raw = tiny_family("jamba")
    tokens = torch.randint(3, 97, (1, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), compress(raw, "knorm", budget=0.5, protect_last=4, prefill=False, every=1000) as cache:
        raw(tokens, past_key_values=cache, output_hidden_states=True)
        with pytest.raises(UsageError, match="one token at a time"):
            raw(tokens, past_key_values=cache, output_hidden_states=True)


def clamped():
    """Nemotron-H clamps its time steps, but not where a token comes alone; where a bound is reached, that shows."""
    raw = tiny_family("nemotron_h")
    for module in raw.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.5, float("inf"))
    return raw


def test_no_token_is_left_alone_where_that_would_change_it():
    with Float64():
        raw = clamped()
        model = wrap_model(raw)
        assert not model.anatomy.steps.alone
        tokens = torch.randint(3, 97, (N + 10,), generator=torch.Generator().manual_seed(5))
        trace = record(model, tokens[:N], span=N + 10, chunk=15)  # 15 and 16
        mask = torch.rand(trace.shape, generator=torch.Generator().manual_seed(7)) < 0.4
        removed = dict(zip(trace.layers, mask, strict=True))
        kl, _, _ = brute_force.influence(raw, tokens, N, removed)
        selection = Selection(mask, trace.layers)
        for chunk, positions in ((9, None), (3, None), (4, torch.tensor([0]))):
            [found] = forward_influence(model, trace, tokens[N:], selection, chunk=chunk, positions=positions)
            wanted = kl if positions is None else kl[positions]
            torch.testing.assert_close(found.kl, wanted, atol=1e-10, rtol=0)
        with pytest.raises(UsageError, match="reads alone"):
            forward_influence(model, trace, tokens[N:], selection, effect="direct")


@pytest.mark.parametrize("name", ["inkling_text", "recurrent_gemma"])
def test_a_model_that_passes_every_probe_and_fails_the_self_test_is_refused_with_both_figures(name):
    """Relative biases that count what is held, and states that no cache holds."""
    with pytest.raises(UsageError, match=r"logits that differ by [\d.e+-]+, although .* within [\d.e+-]+;"):
        examine(tiny_family(name))


@pytest.mark.parametrize("name", ["mamba2", "falcon_mamba"])
def test_a_model_without_attention_is_refused(name):
    with pytest.raises(UsageError, match="has no attention layer: 0 of 3 layers hold entries"):
        examine(tiny_family(name))


def test_states_stay_while_entries_are_evicted_from_a_live_cache():
    with Float64(), torch.no_grad():
        raw = tiny_family("falcon_h1")
        tokens = torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(5))
        with compress(raw, "knorm", budget=0.5, protect_last=4, prefill=False, every=1000) as cache:
            raw(tokens, past_key_values=cache)
            before, held = all_states(cache), cache.bytes()
            cache.compress()
            after = all_states(cache)
            assert all(torch.equal(before[key], after[key]) for key in before)
            assert sum(t.nbytes for t in after.values()) < cache.bytes() < held
            assert cache.stats.full_bytes > cache.stats.bytes


def test_an_empty_cache_has_the_layers_that_its_model_needs():
    raw = tiny_family("gemma3n_text")
    cache = SelectiveCache(raw.config, span=1000)
    assert set(cache.full_layers()) < set(range(len(cache.layers)))
    assert cache.bytes() == 0

"""One latent per token, of which the keys and values of all heads are made: what rules read, and what no rule can."""

from __future__ import annotations

import brute_force
import pytest
import tiny_data
import torch
from families import tiny_family
from float64 import Float64

from forward_influence.attribution.gate_gradients import continuation_gradients, sampled_labels
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.influence.full_run import run_in_full
from forward_influence.influence.measure import forward_influence
from forward_influence.measurement.request import Request
from forward_influence.measurement.screening import screen_document
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import parse_selector
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

N, M, HEADS = 31, 9, 4


@pytest.fixture(scope="module")
def case():
    with Float64():
        model = wrap_model(tiny_family("deepseek_v3"))
        tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
        yield model, tokens, recorded(model, tokens, "attention:window=8", "h2o", "knorm", "caote:window=8", "q-filter")


def recorded(model, tokens, *rules):
    needs = Needs.merge(need for rule in rules for need in parse_selector(rule).needs)
    return record(model, tokens[:N], needs, span=N + M, chunk=13)


@pytest.fixture(scope="module")
def judged(case):
    """Layer -> head -> (attention weights, queries, keys) of the context."""
    model, tokens, _ = case
    found = {}
    with Float64():
        brute_force.logits_of_full_pass(model.model, tokens[:N], inputs=found)
    return found


def test_there_is_one_entry_per_token_and_layer(case):
    model, _, trace = case
    assert trace.shape == (3, 1, N) and (trace.query_heads, model.anatomy.query_heads) == (HEADS, HEADS)
    layer = trace.cache.layers[0]
    assert layer.keys.shape[1] == layer.values.shape[1] == 1
    held = layer.keys.shape[-1] + layer.values.shape[-1]
    assert model.anatomy.entry_size == held < HEADS * 2 * trace.attended(0)[0].shape[-1]


def test_keys_are_those_of_all_heads_side_by_side(case, judged):
    _, _, trace = case
    for row, layer in enumerate(trace.layers):
        wanted = torch.cat([judged[layer][head][2] for head in range(HEADS)], dim=-1)[None]
        torch.testing.assert_close(trace.keys(row), wanted, atol=1e-12, rtol=0)
        assert trace.values(row).shape[:2] == (1, N)


def test_an_entry_gets_the_mean_attention_of_all_heads(case, judged):
    _, _, trace = case
    snap = parse_selector("attention:window=8,kernel=1").scores(trace)
    heavy = parse_selector("h2o").scores(trace)
    norms = parse_selector("knorm").scores(trace)
    for row, layer in enumerate(trace.layers):
        weights = torch.stack([judged[layer][head][0] for head in range(HEADS)])  # (heads, N, N)
        torch.testing.assert_close(
            snap[row, 0, : N - 8], weights[:, -8:, : N - 8].mean((0, 1)), atol=1e-10, rtol=0, check_dtype=False
        )
        torch.testing.assert_close(heavy[row, 0], weights.sum(1).mean(0), atol=1e-10, rtol=0, check_dtype=False)
        lengths = torch.stack([judged[layer][head][2].square().sum(-1) for head in range(HEADS)]).sum(0).sqrt()
        torch.testing.assert_close(norms[row, 0], -lengths, atol=1e-10, rtol=0, check_dtype=False)


def test_caote_takes_each_head_by_itself(case, judged):
    _, _, trace = case
    found = parse_selector("caote:window=8,kernel=1").scores(trace)
    for row, layer in enumerate(trace.layers):
        values = trace.attended(row)[1]
        scores = []
        for head in range(HEADS):
            weights = judged[layer][head][0][-8:]
            apart = values[head][None] - (weights @ values[head])[:, None]  # (window, N, d)
            factor = (weights / (1 - weights + 1e-6)).square()
            scores.append((factor * apart.square().sum(-1)).sum(0))
        wanted = torch.stack(scores).mean(0)[: N - 8]
        torch.testing.assert_close(found[row, 0, : N - 8], wanted, atol=1e-9, rtol=1e-9, check_dtype=False)


def test_the_filter_is_of_each_head(case, judged):
    _, _, trace = case
    found = parse_selector("q-filter").scores(trace)
    for row, layer in enumerate(trace.layers):
        along = []
        for head in range(HEADS):
            queries = judged[layer][head][1][4:]
            _, _, directions = torch.linalg.svd(queries, full_matrices=False)
            direction = directions[0] * torch.sign(directions[0] @ queries.mean(0))
            along.append(judged[layer][head][2] @ direction)
        wanted = torch.stack(along).mean(0)
        torch.testing.assert_close(found[row, 0], wanted, atol=1e-8, rtol=0, check_dtype=False)


def test_gradients_by_gates_of_latents_equal_finite_differences(case):
    """A gate counts for all heads, whose keys it belongs to."""
    model, tokens, trace = case
    with Float64():
        bins = {"all": (0, M)}
        found = continuation_gradients(model, trace, tokens[N:], bins, samples=1, seed=3, chunk=4)["all"][0]
        hidden = run_in_full(model, trace, tokens[N:], M, False).hidden
        labels = sampled_labels(model.anatomy.head, hidden, 1, 3)[0]
        step = 1e-5
        for layer, token in ((0, 5), (1, 17), (2, 30)):
            ends = [gated(model, tokens, trace.layers[layer], token, 1 + sign * step, labels) for sign in (1, -1)]
            wanted = (ends[0] - ends[1]) / (2 * step)
            assert float(found[layer, 0, token]) == pytest.approx(wanted, abs=2e-8, rel=1e-6)


def gated(model, tokens, layer, token, gate, labels):
    """Summed log p(label) where one token's weight in a layer is multiplied for the continuation, in all heads."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def attention(module, query, key, value, mask, scaling=None, **kwargs):
        length = query.shape[2]
        weights = (query[0] @ key[0].mT * scaling).exp() * torch.ones(length, length, dtype=torch.bool).tril()
        if module.layer_idx == layer:
            weights[:, N:, token] = weights[:, N:, token] * gate
        return (weights / weights.sum(-1, keepdim=True) @ value[0])[None].transpose(1, 2), None

    AttentionInterface.register("gated_latents", attention)
    AttentionMaskInterface.register("gated_latents", sdpa_mask)
    raw, before = model.model, model.model.config._attn_implementation
    raw.set_attn_implementation("gated_latents")
    try:
        with torch.no_grad():
            log_p = raw(tokens[None], use_cache=False).logits[0, N:].log_softmax(-1)
    finally:
        raw.set_attn_implementation(before)
    return float(log_p.gather(-1, labels[:, None]).sum())


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_values_alone_cannot_be_replaced(case, kind):
    model, tokens, trace = case
    selection = Selection(torch.rand(trace.shape) < 0.5, trace.layers)
    with pytest.raises(UsageError, match="makes of one latent"):
        forward_influence(model, trace, tokens[N:], selection, ablation=kind)


@pytest.mark.parametrize("name", ["qwen3_next", "glm_moe_dsa", "gemma3n_text"])
def test_rules_that_look_ahead_are_refused_before_anything_is_read(name, tmp_path):
    model = wrap_model(tiny_family(name, torch.float32))
    documents = tiny_data.documents(1, N + M)
    sizes = {"context": N, "continuation": M, "protect_last": 4, "budgets": ("0.4",)}
    with pytest.raises(UsageError, match="no gradients go"):
        measure(model, documents, Request(selectors=("oracle:zone=far",), **sizes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="no gradients go"):
        screen_document(model, documents[0], Request(selectors=("knorm",), **sizes))


def test_a_manifest_says_what_was_found(tmp_path):
    model = wrap_model(tiny_family("jamba", torch.float32))
    request = Request(selectors=("knorm",), context=N, continuation=M, protect_last=4, budgets=("0.4",))
    found = measure(model, tiny_data.documents(1, N + M), request, tmp_path / "run").manifest["model"]
    assert found["cache_layers"] == list(model.anatomy.kinds) and "LinearAttentionLayer" in found["cache_layers"]
    assert found["run_in"] == "one token at a time"
    assert found["windows"] == [0, None, 0, None]

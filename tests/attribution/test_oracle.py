"""Gradients against finite differences, chunks against one pass, estimates against exact influence."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import tiny_data
import torch
from float64 import Float64
from test_influence import M, N, setup_case
from tiny import FAMILIES

from forward_influence.analysis.reading.binning import zone_edges
from forward_influence.attribution.gate_gradients import continuation_gradients, head_gradients, sampled_labels
from forward_influence.errors import UsageError
from forward_influence.measurement.document import measure_document
from forward_influence.measurement.request import Request
from forward_influence.measurement.token_counts import gradient_tokens
from forward_influence.selectors import parse_selector
from forward_influence.utils.distances import zones

BINS = {"near": (0, 6), "far": (10, M)}


def test_zones_are_those_of_the_analysis():
    for m in (3, 17, 512, 3072):
        edges = zone_edges(m).tolist()
        assert list(zones(m).values()) == list(pairwise(edges))


def log_p_with_gates(model, tokens, gates, labels, bins):
    """Summed log p(label) of each bin from one naive full pass in which gates multiply attention weights."""
    logits = gated_logits(model, tokens, gates)[N:]
    picked = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    return {name: float(picked[low:high].sum()) for name, (low, high) in bins.items()}


def gated_logits(model, tokens, gates):
    """The naive attention, its weights multiplied by gates for queries of the continuation and normalised anew."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **kwargs):
        length, group = query.shape[2], query.shape[1] // key.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = allowed if mask is None else allowed & mask[0, 0]
        outputs = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
        for head in range(query.shape[1]):
            kv = head // group
            scores = query[0, head] @ key[0, kv].T * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp() * allowed
            if module.layer_idx in gates:
                weights[N:, :N] = weights[N:, :N] * gates[module.layer_idx][kv]
            total = weights.sum(-1, keepdim=True)
            if s_aux is not None:
                total = total + s_aux[head].exp()
            outputs[0, head] = weights / total @ value[0, kv]
        return outputs.transpose(1, 2), None

    AttentionInterface.register("gated_reference", attention)
    AttentionMaskInterface.register("gated_reference", sdpa_mask)
    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("gated_reference")
    try:
        with torch.no_grad():
            return model.model(tokens[None], use_cache=False).logits[0]
    finally:
        model.model.set_attn_implementation(before)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_equal_finite_differences(family):
    with Float64():  # norms in float32 would be all that a difference of 1e-5 shows
        compare_with_finite_differences(family)


def compare_with_finite_differences(family):
    model, tokens, trace = setup_case(family)
    found = continuation_gradients(model, trace, tokens[N:], BINS, samples=2, seed=3, chunk=7)
    labels = labels_of(model, trace, tokens, 2, 3)
    assert labels.shape == (2, M) and int(labels.max()) < 97
    step = 1e-5
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        layer, head, token = (int(torch.randint(s, (), generator=generator)) for s in trace.shape)
        for sample in range(2):
            ends = []
            for sign in (1, -1):
                gates = {index: torch.ones(trace.kv_heads, N, dtype=torch.float64) for index in trace.layers}
                gates[trace.layers[layer]][head, token] += sign * step
                ends.append(log_p_with_gates(model, tokens, gates, labels[sample], BINS))
            for name in BINS:
                wanted = (ends[0][name] - ends[1][name]) / (2 * step)
                assert float(found[name][sample, layer, head, token]) == pytest.approx(wanted, abs=2e-8, rel=1e-6)


def labels_of(model, trace, tokens, samples, seed):
    from forward_influence.instrument.forward import continuation_hidden
    from forward_influence.instrument.instrument import Instrument

    with torch.no_grad(), Instrument(model.model) as instrument:
        instrument.cache = trace.cache.branch(None, M)
        hidden = continuation_hidden(model.model, tokens[N:], instrument, M)
    return sampled_labels(model.anatomy.head, hidden, samples, seed)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2"])
def test_chunks_and_groups_change_nothing(family):
    model, tokens, trace = setup_case(family)
    whole = continuation_gradients(model, trace, tokens[N:], BINS, samples=3, seed=1, chunk=M)
    parts = continuation_gradients(model, trace, tokens[N:], BINS, samples=3, seed=1, chunk=5, waiting_bytes=1)
    for name in BINS:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-11, rtol=0)
        assert float(whole[name].abs().max()) > 1e-3


def test_gradients_of_the_head():
    model, _, _ = setup_case("gemma2")
    hidden = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4, 5], [9, 9, 9, 9, 9]])
    found = head_gradients(model.anatomy.head, hidden, labels)
    for row, some in zip(found, labels, strict=True):
        states = hidden.clone().requires_grad_()
        model.anatomy.head(states).log_softmax(-1).gather(-1, some[:, None]).sum().backward()
        torch.testing.assert_close(row, states.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("by", ["closing", "fisher"])
def test_oracles_are_rules_of_a_measurement(by):
    model = tiny_data.model()
    [document] = tiny_data.documents(1, 100)
    way = "" if by == "closing" else ",by=fisher,samples=4"
    oracles = [f"oracle:{zone}{way},per={per}" for zone in ("near", "far", "all") for per in ("entry", "token")]
    request = Request(selectors=("recent", *oracles), context=60, continuation=40, protect_last=8, budgets=("0.2",))
    assert [rule.spec for rule in request.rules[1:3]] == [
        f"oracle:near{way}", "oracle:near,per=token" + way
    ]  # fmt: skip
    assert gradient_tokens(request) == {"closing": 2 * 40 + 5 + 20 + 40, "fisher": 40 + 4 * (5 + 20 + 40)}[by]
    rows = [row for row in measure_document(model, document, request).rows if row["kind"] == "condition"]
    assert [row["selected"] for row in rows] == [[12] * 6] * 7
    assert [json.loads(row["parameters"])["grain"] for row in rows[1:]] == ["entry", "token"] * 3
    again = [row for row in measure_document(model, document, request).rows if row["kind"] == "condition"]
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one["kl"], other["kl"])
    by_zone = {row["selector"]: (row["kl"][:5].mean(), row["kl"][20:].mean()) for row in rows}
    near, far = (by_zone[rule.spec] for rule in (request.rules[1], request.rules[3]))
    assert near[0] > by_zone["recent"][0] and far[1] > by_zone["recent"][1]


def test_fisher_scores_are_half_the_mean_square_summed_over_zones():
    """With samples of opposite sign, so that squares and means cannot be swapped; at each grain, against loops."""
    _, _, trace = setup_case("llama")
    layers, heads, n = trace.shape
    made = torch.Generator().manual_seed(11)
    gradients = {
        zone: torch.randn(2, layers, heads, n, dtype=torch.float64, generator=made)
        for zone in ("near", "middle", "far")
    }
    mine = dataclasses.replace(trace, future=gradients)
    together = {
        "entry": lambda g, layer, head, token: g[layer, head, token],
        "layer": lambda g, layer, head, token: sum(g[layer, h, token] for h in range(heads)),
        "token": lambda g, layer, head, token: sum(g[la, h, token] for la in range(layers) for h in range(heads)),
    }
    for zone, summed in (("far", ("far",)), ("all", ("near", "middle", "far"))):
        for per, of in together.items():
            found = parse_selector(f"oracle:{zone},by=fisher,samples=2,per={per}").scores(mine)
            found = found.expand(layers, heads, n)
            for layer, head, token in ((0, 0, 0), (1, 1, 3), (layers - 1, 0, n - 1)):
                squares = [float(of(sample, layer, head, token)) ** 2 for z in summed for sample in gradients[z]]
                assert float(found[layer, head, token]) == pytest.approx(sum(squares) / 4, rel=1e-10)


def test_an_oracle_without_a_continuation_is_refused():
    _, _, trace = setup_case("llama")
    with pytest.raises(UsageError, match="gradients of the far continuation are missing"):
        parse_selector("oracle:far,by=fisher").scores(trace)
    with pytest.raises(UsageError, match="gradients of the far continuation while gates close are missing"):
        parse_selector("oracle:far").scores(trace)
    for wrong in ("oracle:late", "oracle:far,samples=0", "oracle:by=guess"):
        with pytest.raises(UsageError, match="oracle: "):
            parse_selector(wrong)

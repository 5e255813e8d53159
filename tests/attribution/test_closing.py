"""Gradients of the divergence while gates close: finite differences, chunks, and the influence of everything."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from float64 import Float64
from test_influence import M, N, setup_case
from test_oracle import BINS, gated_logits
from tiny import FAMILIES

from forward_influence.attribution.integrated_gradients import closing_gradients, divergence_gradients, gate_values
from forward_influence.influence.ablation import removal
from forward_influence.influence.measure import measure_ablations
from forward_influence.selectors.selection import Selection

FIRST, LAST = 3, N - 5


def case(family: str):
    model, tokens, trace = setup_case(family)
    return model, tokens, dataclasses.replace(trace, first=FIRST, last=LAST, _memo={})


def divergences(model, tokens, full, gates):
    """Summed KL of each bin from one naive full pass in which gates multiply attention weights."""
    q = gated_logits(model, tokens, gates)[N:].log_softmax(-1)
    kl = (full.exp() * (full - q)).sum(-1)
    return {name: float(kl[low:high].sum()) for name, (low, high) in BINS.items()}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_equal_to_finite_differences(family):
    with Float64():
        model, tokens, trace = case(family)
        found = closing_gradients(model, trace, tokens[N:], BINS, gates=2, chunk=7)
        ones = {index: torch.ones(trace.kv_heads, N, dtype=torch.float64) for index in trace.layers}
        full = gated_logits(model, tokens, ones)[N:].log_softmax(-1)
        step, generator = 1e-5, torch.Generator().manual_seed(0)
        for number, gate in enumerate((0.75, 0.25)):
            for inside in (True, True, False):
                layer, head = (int(torch.randint(s, (), generator=generator)) for s in trace.shape[:2])
                token = int(torch.randint(FIRST, LAST, (), generator=generator)) if inside else FIRST - 1
                ends = []
                for sign in (1, -1):
                    gates = {index: one.clone() for index, one in ones.items()}
                    for one in gates.values():
                        one[:, FIRST:LAST] = gate
                    gates[trace.layers[layer]][head, token] += sign * step
                    ends.append(divergences(model, tokens, full, gates))
                for name in BINS:
                    wanted = -(ends[0][name] - ends[1][name]) / (2 * step)
                    assert float(found[name][number, layer, head, token]) == pytest.approx(wanted, abs=2e-8, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2"])
def test_chunks_and_groups_change_nothing(family):
    model, tokens, trace = case(family)
    whole = closing_gradients(model, trace, tokens[N:], BINS, gates=3, chunk=M)
    parts = closing_gradients(model, trace, tokens[N:], BINS, gates=3, chunk=5, waiting_bytes=1)
    for name in BINS:
        assert whole[name].shape == (3, *trace.shape)
        torch.testing.assert_close(parts[name], whole[name], atol=1e-11, rtol=0)
        assert float(whole[name].abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_all_candidates_together_come_to_the_influence_of_removing_them(family):
    model, tokens, trace = case(family)
    everything = torch.zeros(trace.shape, dtype=torch.bool)
    everything[..., FIRST:LAST] = True
    [influence] = measure_ablations(
        model, trace, tokens[N:], [removal(trace, Selection(everything, trace.layers), "drop", M)]
    )[1]
    errors = []
    for gates in (4, 64):
        found = closing_gradients(model, trace, tokens[N:], {"all": (0, M)}, gates)["all"]
        total = float(found[..., FIRST:LAST].sum((1, 2, 3)).mean())
        errors.append(abs(total / float(influence.kl.sum()) - 1))
    assert errors[1] < 0.02 and errors[1] < errors[0]


def test_gates_are_in_the_middle_of_equal_steps():
    assert gate_values(1) == [0.5]
    assert gate_values(4) == [0.875, 0.625, 0.375, 0.125]


def test_gradients_of_the_divergence():
    model, _, _ = setup_case("gemma2")
    generator = torch.Generator().manual_seed(0)
    full, hidden = (torch.randn(70, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    states = hidden.clone().requires_grad_()
    p, q = (model.anatomy.head(s).log_softmax(-1) for s in (full, states))
    (p.exp() * (p - q)).sum().backward()
    torch.testing.assert_close(divergence_gradients(model.anatomy.head, full, hidden), states.grad, atol=1e-12, rtol=0)

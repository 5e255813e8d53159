"""KL and its companions against definitions in float64 and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from forward_influence.divergence import Reference, entropy, kl_divergence


def pairs(rows: int, words: int, gap: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(rows, words, generator=generator, dtype=torch.float64) * 4
    return p, p + torch.randn(rows, words, generator=generator, dtype=torch.float64) * gap


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3, 0.3, 8.0])
def test_kl_equals_scipy_in_float64(gap):
    p, q = pairs(7, 301, gap)
    wanted = scipy.stats.entropy(p.softmax(-1).numpy(), q.softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), wanted, atol=2e-15, rtol=1e-9)


@pytest.mark.parametrize("gap", [1e-4, 1e-3, 1e-2])
def test_float32_is_accurate_where_the_shortcut_is_not(gap):
    p, q = pairs(64, 20_000, gap)
    log_p, log_q = p.float().double().log_softmax(-1), q.float().double().log_softmax(-1)
    truth = (log_p.exp() * (log_p - log_q)).sum(-1)
    found = kl_divergence(p.float(), q.float()).double()
    assert bool(((found - truth).abs() < 1e-10 + 1e-3 * truth).all())
    shortcut = ((p.float().log_softmax(-1)).exp() * (p.float().log_softmax(-1) - q.float().log_softmax(-1))).sum(-1)
    assert float((found - truth).abs().max()) < 0.05 * float((shortcut.double() - truth).abs().max())
    assert float(found.min()) >= 0


def test_far_apart_distributions_leave_float32s_range_and_are_still_right():
    p = torch.zeros(3, 50)
    q = torch.zeros(3, 50)
    p[0, 0], q[0, 1] = 200.0, 200.0
    p[1, 0], q[1, 0] = 95.0, -95.0
    p[2, 3] = 300.0
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q).double(), wanted, atol=1e-4, rtol=1e-5)


def test_mass_where_p_has_underflowed_counts():
    p, q = torch.zeros(1, 10), torch.zeros(1, 10)
    p[0, 0] = 120.0  # the others have p = e^-120, zero in float32
    q[0, 0] = 1.0
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q).double(), wanted, atol=1e-6, rtol=1e-6)


def test_nll_and_top1_by_definition_and_ties_are_no_change():
    p, q = pairs(40, 60, 1.0)
    targets = torch.arange(40) % 60
    targets[-1] = -1
    reference = Reference(p.clone(), targets)
    shift = reference.compare(q.clone())
    rows = torch.arange(39)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    torch.testing.assert_close(reference.nll()[:-1], -log_p[rows, targets[:-1]])
    torch.testing.assert_close(shift.nll_delta[:-1], (log_p - log_q)[rows, targets[:-1]])
    assert torch.isnan(shift.nll_delta[-1])
    assert torch.isnan(reference.nll()[-1])
    assert torch.equal(shift.top1_changed, p.argmax(-1) != q.argmax(-1))
    tied = p.clone()
    tied[torch.arange(40), (p.argmax(-1) + 1) % 60] = p.max(-1).values
    assert not bool(Reference(p.clone(), targets).compare(tied).top1_changed.any())


def test_one_reference_serves_many():
    p, _ = pairs(5, 80, 0.0)
    reference = Reference(p.clone(), torch.full((5,), -1))
    for seed in range(3):
        _, q = pairs(5, 80, 0.5, seed)
        torch.testing.assert_close(reference.compare(q.clone()).kl, kl_divergence(p, q))


def test_inputs_of_kl_divergence_stay():
    p, q = pairs(2, 9, 1.0)
    before = p.clone(), q.clone()
    kl_divergence(p, q)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 100])
def test_entropy_equals_scipy(top_k):
    logits, _ = pairs(6, 40, 0.0)
    kept = logits.sort(-1, descending=True).values[:, : top_k or None]
    wanted = scipy.stats.entropy(kept.softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(entropy(logits, top_k).numpy(), wanted, atol=1e-12)


def test_half_precision_is_raised_to_float32():
    p, q = pairs(2, 30, 0.1)
    assert kl_divergence(p.bfloat16(), q.bfloat16()).dtype == torch.float32
    assert entropy(p.half()).dtype == torch.float32

"""KL and its companions against definitions in float64 and against scipy."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import scipy.stats
import torch

from forward_influence.influence.divergence import Reference, compiling
from forward_influence.utils.numerics import at_least_float32, entropy

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def pairs(rows: int, words: int, gap: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(rows, words, generator=generator, dtype=torch.float64) * 4
    return p, p + torch.randn(rows, words, generator=generator, dtype=torch.float64) * gap


def kl_divergence(p_logits, q_logits):
    """KL(p || q) of two blocks of logits as the engine has it, (rows,); they are left as they are."""
    p_logits, q_logits = at_least_float32(p_logits), at_least_float32(q_logits)
    return Reference(p_logits.clone(), torch.full(p_logits.shape[:1], -1)).compare(q_logits.clone()).kl


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


def by_words(p_row: np.ndarray, q_row: np.ndarray) -> float:
    """KL word by word in float64: p = 0 adds nothing, q = 0 < p makes it infinite."""
    p = np.exp(p_row - p_row.max()) / np.exp(p_row - p_row.max()).sum()
    q = np.exp(q_row - q_row.max()) / np.exp(q_row - q_row.max()).sum()
    total = 0.0
    for one, other in zip(p, q, strict=True):
        if one > 0:
            total += np.inf if other == 0 else one * np.log(one / other)
    return float(total)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_that_do_not_exist_add_nothing_and_those_that_vanish_make_it_infinite(dtype, compiled):
    p, q = (logits.to(dtype) for logits in pairs(400, 3001, 0.3))  # more rows than fit a cache at a time
    p[:, 2900:] = q[:, 2900:] = -torch.inf  # rows that pad the vocabulary
    p[3, 10:200] = -torch.inf  # possible for q alone: that is its lost mass
    q[5, 1] = -torch.inf  # possible for p alone
    p[7, 0] = q[7, 2] = 300.0  # beyond float32's range too
    p[9, 20:] = q[9, 20:] = -torch.inf
    targets = torch.arange(400)
    targets[[11, 12]] = torch.tensor([2950, -1])
    with compiling(compiled):
        reference = Reference(p.clone(), targets)
        shift = reference.compare(q.clone())
        shorter = reference.compare(q[:10].clone())
    wide = [logits.double().numpy() for logits in (p, q)]
    wanted = np.array([by_words(*rows) for rows in zip(*wide, strict=True)])
    assert np.isinf(wanted[5])
    tolerance = {"atol": 1e-7, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-13, "rtol": 1e-9}
    np.testing.assert_allclose(shift.kl.double().numpy(), wanted, **tolerance)
    np.testing.assert_allclose(shorter.kl.double().numpy(), wanted[:10], **tolerance)
    log_p, log_q = (torch.from_numpy(logits).log_softmax(-1) for logits in wide)
    there = torch.tensor([i for i in range(400) if i not in (11, 12)])
    nll = -log_p[there, targets[there]]
    torch.testing.assert_close(reference.nll()[there].double(), nll, atol=1e-5, rtol=1e-5)
    delta = (log_p - log_q)[there, targets[there]]
    torch.testing.assert_close(shift.nll_delta[there].double(), delta, atol=1e-5, rtol=1e-4)
    assert torch.isposinf(reference.nll()[11]) and torch.isnan(reference.nll()[12])
    assert torch.equal(shift.top1_changed, p.argmax(-1) != q.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_q_alone_may_lose_words(dtype):
    """No word is impossible for p, so that nothing is set up for it beforehand."""
    p, q = (logits.to(dtype) for logits in pairs(6, 50, 0.3))
    q[2, 4], q[4, 0] = -torch.inf, torch.nan
    p[3, 7] = -400.0  # p(7) is 0 in float32, but not in truth
    q[3, 7] = -torch.inf
    found = kl_divergence(p, q)
    assert torch.isposinf(found[[2, 3]]).all()
    assert torch.isnan(found[4])
    wanted = [by_words(p[i].double().numpy(), q[i].double().numpy()) for i in (0, 1, 5)]
    torch.testing.assert_close(
        found[[0, 1, 5]].double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=1e-5
    )


def test_entropy_of_words_that_do_not_exist_is_none():
    logits, _ = pairs(6, 40, 0.0)
    logits[:, 30:] = -torch.inf
    wanted = scipy.stats.entropy(logits[:, :30].softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(entropy(logits).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(entropy(logits, 35).numpy(), wanted, atol=1e-12)

"""The divergence compiled: the same results but for rounding, in one process and in a run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny_data
import torch

from forward_influence.execution.run import measure
from forward_influence.influence.divergence import Reference, compiling
from forward_influence.measurement.request import Request

# The compiler imports it, which fails where another test has imported Python 3.11's own distutils before.
pytest.importorskip("setuptools")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")


def logits(rows: int, words: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shifts_are_equal_but_for_rounding(dtype):
    p, targets = logits(37, 501, 0, dtype), torch.arange(37)
    targets[5] = -1
    q = p + 0.05 * logits(37, 501, 1, dtype)
    p[7, 3] = q[9, 4] = 200.0  # rows that go the long way, in float64
    found = []
    for wanted in (False, True):
        with compiling(wanted):
            reference = Reference(p.clone(), targets)
            found.append(reference.compare(q.clone()))
            shorter = reference.compare(q[:11].clone())
        torch.testing.assert_close(shorter.kl, found[-1].kl[:11], rtol=1e-6, atol=1e-9)
    plain, compiled = found
    rounding = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(compiled.kl, plain.kl, rtol=20 * rounding, atol=rounding)
    torch.testing.assert_close(compiled.nll_delta, plain.nll_delta, rtol=20 * rounding, atol=rounding, equal_nan=True)
    assert torch.equal(compiled.top1_changed, plain.top1_changed)


def test_a_run_compiled_equals_one_that_is_not_and_goes_on_as_it_was_begun(tmp_path):
    model, documents = tiny_data.model(), tiny_data.documents(2, 100)
    request = Request(selectors=("recent", "random"), context=60, continuation=40, protect_last=8)
    plain = measure(model, documents, request, tmp_path / "plain")
    run = measure(model, documents, request, tmp_path / "run", compile=True)
    assert run.manifest["execution"]["compile"] is True
    for one, two in zip(plain.rows(), run.rows(), strict=True):
        if one["kl"] is not None:
            np.testing.assert_allclose(two["kl"], one["kl"], rtol=1e-4, atol=1e-7)
            assert np.array_equal(one["top1_changed"], two["top1_changed"])
    before = [row["kl"] for row in run.rows() if row["document"] == "doc 1/../x" and row["kl"] is not None]
    run.part_path(run.documents[1]["part"]).unlink()
    run = measure(model, documents, request, tmp_path / "run")
    after = [row["kl"] for row in run.rows() if row["document"] == "doc 1/../x" and row["kl"] is not None]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

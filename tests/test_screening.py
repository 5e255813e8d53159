"""Estimates of influence from gradients against exact values, on tiny models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch
from scipy.stats import spearmanr
from test_influence import M, N, setup_case

from forward_influence.analysis.agreement import agreement
from forward_influence.cli.screen import as_frame
from forward_influence.gradients import continuation_gradients
from forward_influence.influence import measure_ablations, removal
from forward_influence.request import Request
from forward_influence.screening import leave_one_out_masks, screen_document, set_estimates, token_leave_one_out
from forward_influence.selection import Selection

WHOLE = {"all": (0, M)}


def test_leave_one_out_is_ranked_by_its_estimate():
    model, tokens, trace = setup_case("llama")
    gradients = continuation_gradients(model, trace, tokens[N:], WHOLE, samples=64, seed=0)["all"]
    masks = leave_one_out_masks(trace.shape, range(N))
    estimates = token_leave_one_out(gradients, M)
    one = [float(set_estimates(gradients, mask, M).mean()) for mask in masks]
    np.testing.assert_allclose(estimates.numpy(), one, rtol=1e-12)
    ablations = [removal(trace, Selection(mask, trace.layers), "drop", M) for mask in masks]
    exact = [float(found.kl.mean()) for found in measure_ablations(model, trace, tokens[N:], ablations)[1]]
    assert spearmanr(estimates, exact).statistic > 0.7


def test_small_removals_are_estimated_in_value():
    """Entries with little attention are where the local estimate holds: its mean must be near the exact value."""
    model, tokens, trace = setup_case("llama")
    gradients = continuation_gradients(model, trace, tokens[N:], WHOLE, samples=200, seed=1)["all"]
    weakest = gradients.square().mean(0).flatten().argsort()[:60]
    ratios = []
    for start in range(0, 60, 20):
        mask = torch.zeros(trace.shape, dtype=torch.bool)
        mask.view(-1)[weakest[start : start + 20]] = True
        [found] = measure_ablations(
            model, trace, tokens[N:], [removal(trace, Selection(mask, trace.layers), "drop", M)]
        )[1]
        ratios.append(float(set_estimates(gradients, mask, M).mean()) / float(found.kl.mean()))
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


def test_screening_a_document():
    request = Request(
        selectors=("attention:window=8", "entropy", "recent", "first", "random", "oracle:far,samples=3"),
        context=60, continuation=40, protect_last=8, budgets=("0.2",), draws=2,
    )  # fmt: skip
    found, seconds = screen_document(tiny_data.model(), tiny_data.documents(1, 100)[0], request, 4, exact=True)
    frame = as_frame(found)
    assert len(frame) == 7 * 3 and set(frame["bin"]) == {"near", "middle", "far"}
    assert all(len(e) == 4 and (e >= 0).all() for e in frame["estimates"])
    assert (frame["exact"] > 0).all() and seconds["gradients"] > 0
    table = agreement(frame, (1, 2, 4, 8))
    assert table["samples"].unique().tolist() == [1, 2, 4] and set(table["rules"]) == {6}


def test_agreement_of_known_rankings():
    rows = [
        {"document": d, "selector": s, "budget": "0.2", "bin": "far", "estimates": np.array([e, -e]), "exact": x}
        for d, flip in (("a", 1), ("b", -1))
        for s, e, x in (("p", 1.0, 1.0), ("q", 2.0, 2.0 ** flip), ("r", 3.0, 3.0**flip))
    ]  # fmt: skip
    [row] = agreement(pd.DataFrame(rows), (1,)).to_dict("records")
    assert row["within"] == pytest.approx((1.0 + spearmanr([1, 2, 3], [1, 1 / 2, 1 / 3]).statistic) / 2)
    assert row["lowest"] == pytest.approx(-1.0)

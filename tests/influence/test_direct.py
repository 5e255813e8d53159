"""The direct effect against what it means: full cache up to t, drop the set, process token t."""

from __future__ import annotations

import dataclasses

import brute_force
import pytest
import torch
from test_influence import M, N, random_selection, removed_by, setup_case
from tiny import FAMILIES

from forward_influence.errors import UsageError
from forward_influence.influence.ablation import removal, shuffled
from forward_influence.influence.effects import effect_of
from forward_influence.influence.measure import forward_influence, measure_ablations
from forward_influence.measurement.positions import sampled_positions
from forward_influence.utils.distances import zones


def by_definition(model, tokens, removed):
    """Token by token: a full pass over everything up to t in which token t alone does not see the selection."""
    kl, delta, top1 = [], [], []
    for t in range(N, N + M):
        p = brute_force.logits_of_full_pass(model.model, tokens[: t + 1]).logits[0, -1:]
        q = brute_force.logits_of_full_pass(model.model, tokens[: t + 1], removed, after=t).logits[0, -1:]
        kl.append(brute_force.kl_by_definition(p, q)[0])
        top1.append(bool(p.argmax() != q.argmax()))
        if t + 1 < N + M:
            delta.append((p.log_softmax(-1) - q.log_softmax(-1))[0, tokens[t + 1]])
    return torch.stack(kl), torch.stack(delta), torch.tensor(top1)


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal-counts", "ragged"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_its_operational_meaning(family, equal, mode):
    model, tokens, trace = setup_case(family)
    selection = random_selection(trace, equal=equal)
    kl, delta, top1 = by_definition(model, tokens, removed_by(selection, mode))
    [found] = forward_influence(model, trace, tokens[N:], selection, mode=mode, effect="direct", chunk=9)
    assert float(kl.max()) > 1e-4, "the reference itself must see an effect"
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.nll_delta[:-1], delta, atol=1e-10, rtol=0)
    assert torch.equal(found.top1_changed, top1)


@pytest.mark.parametrize("effect", ["total", "direct"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_sampled_positions_are_those_of_the_whole(family, effect):
    model, tokens, trace = setup_case(family)
    selection = random_selection(trace)
    [whole] = forward_influence(model, trace, tokens[N:], selection, effect=effect)
    where = torch.tensor([0, 3, 4, 11, M - 1])
    [some] = forward_influence(model, trace, tokens[N:], selection, effect=effect, positions=where, chunk=2)
    torch.testing.assert_close(some.kl, whole.kl[where], atol=1e-12, rtol=0)
    torch.testing.assert_close(some.nll_delta, whole.nll_delta[where], atol=1e-12, rtol=0, equal_nan=True)
    assert torch.equal(some.top1_changed, whole.top1_changed[where])


def test_first_position_has_no_remainder_and_later_ones_do():
    model, tokens, trace = setup_case("llama")
    selection = random_selection(trace)
    [total] = forward_influence(model, trace, tokens[N:], selection)
    [direct] = forward_influence(model, trace, tokens[N:], selection, effect="direct")
    assert float((total.kl - direct.kl)[0].abs()) < 1e-12
    assert float((total.kl - direct.kl)[1:].abs().max()) > 1e-3


def test_both_effects_in_one_measurement_share_the_full_run():
    model, tokens, trace = setup_case("gemma3_text")
    selection = random_selection(trace)
    ablations = [removal(trace, selection, "drop", M, "a", effect=effect_of(name)) for name in ("total", "direct")]
    nll, found = measure_ablations(
        model, trace, tokens[N:], [*ablations, shuffled(trace, 9, effect=effect_of("direct"))], chunk=6
    )
    alone = [forward_influence(model, trace, tokens[N:], selection, effect=e)[0] for e in ("total", "direct")]
    for one, other in zip(found, alone, strict=False):
        torch.testing.assert_close(one.kl, other.kl, atol=1e-12, rtol=0)
    assert found[2].kl.shape == (9,) and float(found[2].kl.max()) < 1e-20
    assert nll.shape == (M,)


def test_nan_is_reported_at_the_sampled_distance():
    model, tokens, trace = setup_case("llama")
    selection = random_selection(trace)
    where = torch.tensor([5, 7])
    ablation = removal(trace, selection, "drop", M, "poisoned", where, effect_of("direct"))

    def poisoned(room):
        cache = trace.cache.branch(selection.kept("drop"), room)
        cache.layers[1].values[..., -1, :] = float("nan")
        return cache

    broken = dataclasses.replace(ablation, branch=poisoned)
    with pytest.raises(Exception, match="poisoned: NaN or infinite logits at distance 5"):
        measure_ablations(model, trace, tokens[N:], [broken])


def test_unknown_effect_is_refused():
    model, tokens, trace = setup_case("llama")
    with pytest.raises(UsageError, match="effect 'both' is unknown"):
        forward_influence(model, trace, tokens[N:], random_selection(trace), effect="both")


def test_sampled_positions_come_from_every_bin():
    found = sampled_positions(300, 16, 128, seed=3)
    assert torch.equal(found, found.unique())
    # near ends at 37 and middle at 150, where bins are drawn from in two parts
    parts = [(0, 37), (37, 128), (128, 150), (150, 256), (256, 300)]
    assert [int(((found >= low) & (found < high)).sum()) for low, high in parts] == [5, 12, 3, 14, 6]
    assert int(found[-1]) < 300
    assert not torch.equal(found, sampled_positions(300, 16, 128, seed=4))
    assert torch.equal(sampled_positions(100, 128, 128, seed=0), torch.arange(100))
    with pytest.raises(UsageError, match="give 1 to 128"):
        sampled_positions(300, 129, 128, seed=0)


@pytest.mark.parametrize("m", [3, 100, 256, 300, 512, 1000])
@pytest.mark.parametrize("per_bin", [1, 2, 16])
def test_near_middle_and_far_all_have_sampled_positions(m, per_bin):
    for seed in range(20):
        found = sampled_positions(m, per_bin, 128, seed)
        assert all(((found >= low) & (found < high)).any() for low, high in zones(m).values())
    whole = sampled_positions(1024, per_bin, 128, 0)  # zones of whole bins cost nothing
    assert len(whole) == 8 * per_bin

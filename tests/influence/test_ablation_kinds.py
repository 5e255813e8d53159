"""Zero and mean ablation against a naive full pass in which later queries see other values, in float64."""

from __future__ import annotations

import brute_force
import pytest
import torch
from test_influence import M, N, random_selection, removed_by, setup_case
from tiny import FAMILIES

from forward_influence.errors import UsageError
from forward_influence.influence.ablation import removal
from forward_influence.influence.ablation_kinds import ABLATION_KINDS, MEAN, ZERO
from forward_influence.influence.effects import effect_of
from forward_influence.influence.masked import masked_direct_influence, masked_influence
from forward_influence.influence.measure import forward_influence, measure_ablations
from forward_influence.models.loading import wrap_model
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record

FIRST, LAST = 3, N - 6
#: What a naive pass puts in the place of a head's values (length, d_v).
CHANGES = {"zero": lambda v: v.new_zeros(v.shape[1]), "mean": lambda v: v[FIRST:LAST].mean(0)}


def case(family: str, **changes):
    model, tokens, _ = setup_case(family, **changes)
    return model, tokens, record(model, tokens[:N], span=N + M, first=FIRST, last=LAST, chunk=13)


def direct_by_definition(model, tokens, removed, change):
    """A full pass over everything up to each t, in which token t alone sees other values."""
    found = []
    for t in range(N, N + M, 5):
        until = tokens[: t + 1]
        p = brute_force.logits_of_full_pass(model.model, until).logits[0, -1:]
        q = brute_force.logits_of_full_pass(model.model, until, removed, after=t, change=change).logits[0, -1:]
        found.append(brute_force.kl_by_definition(p, q)[0])
    return torch.stack(found)


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal-counts", "ragged"])
@pytest.mark.parametrize("ablation", list(CHANGES))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_a_naive_pass_with_changed_values(family, ablation, equal, mode):
    model, tokens, trace = case(family)
    selection = random_selection(trace, equal=equal)
    removed, change = removed_by(selection, mode), CHANGES[ablation]
    kl, nll_delta, top1 = brute_force.influence(model.model, tokens, N, removed, change)
    [found] = forward_influence(model, trace, tokens[N:], selection, mode=mode, ablation=ablation, chunk=9)
    assert float(kl.max()) > 1e-4, "the reference itself must see an effect"
    torch.testing.assert_close(found.kl, kl, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.nll_delta[:-1], nll_delta, atol=1e-10, rtol=0)
    assert torch.equal(found.top1_changed, top1)


@pytest.mark.parametrize("ablation", list(CHANGES))
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "gpt_oss"])
def test_direct_effects_equal_their_meaning(family, ablation):
    model, tokens, trace = case(family)
    selection = random_selection(trace)
    wanted = direct_by_definition(model, tokens, removed_by(selection, "drop"), CHANGES[ablation])
    where = torch.arange(0, M, 5)
    asked = {"effect": "direct", "ablation": ablation, "positions": where, "chunk": 2}
    [found] = forward_influence(model, trace, tokens[N:], selection, **asked)
    assert float(wanted.max()) > 1e-4
    torch.testing.assert_close(found.kl, wanted, atol=1e-10, rtol=0)


def test_the_three_kinds_differ_and_removal_is_what_it_was():
    model, tokens, trace = case("llama")
    selection = random_selection(trace)
    found = {
        name: forward_influence(model, trace, tokens[N:], selection, ablation=name)[0].kl for name in ABLATION_KINDS
    }
    assert list(found) == ["remove", "zero", "mean"]
    [default] = forward_influence(model, trace, tokens[N:], selection)
    assert torch.equal(default.kl, found["remove"])
    for one, other in (("remove", "zero"), ("remove", "mean"), ("zero", "mean")):
        assert float((found[one] - found[other]).abs().max()) > 1e-3


@pytest.mark.parametrize("ablation", list(CHANGES))
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_the_masked_roads_of_verify_agree(family, ablation):
    model, tokens, trace = case(family)
    selection = random_selection(trace)
    fills = ABLATION_KINDS[ablation].fills(trace)
    [found] = forward_influence(model, trace, tokens[N:], selection, ablation=ablation)
    other = masked_influence(model, tokens, trace, selection, "drop", fills)
    torch.testing.assert_close(found.kl, other.kl, atol=1e-12, rtol=0)
    where = torch.tensor([0, 7, M - 1])
    [direct] = forward_influence(
        model, trace, tokens[N:], selection, ablation=ablation, effect="direct", positions=where
    )
    again = masked_direct_influence(model, tokens, trace, selection, where, fills)
    torch.testing.assert_close(direct.kl, again, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", [ZERO, MEAN], ids=lambda kind: kind.name)
def test_the_trace_keeps_its_values_and_sampled_positions_are_those_of_the_whole(kind):
    model, tokens, trace = case("llama")
    selection = random_selection(trace)
    before = [trace.values(i).clone() for i in range(len(trace.layers))]
    where = torch.tensor([0, 3, 11, M - 1])
    asked = [removal(trace, selection, "drop", M, kind.name, at, kind=kind) for at in (None, where)]
    _, [whole, some] = measure_ablations(model, trace, tokens[N:], asked, chunk=6)
    torch.testing.assert_close(some.kl, whole.kl[where], atol=1e-12, rtol=0)
    assert all(torch.equal(trace.values(i), values) for i, values in enumerate(before))


@pytest.mark.parametrize("effect", ["total", "direct"])
@pytest.mark.parametrize("kind", [ZERO, MEAN], ids=lambda kind: kind.name)
def test_nothing_ablated_is_exactly_zero(kind, effect):
    model, tokens, trace = case("gemma3_text")
    nothing = Selection(torch.zeros(trace.shape, dtype=torch.bool), trace.layers)
    ablation = removal(trace, nothing, "drop", M, effect=effect_of(effect), kind=kind)
    _, [found] = measure_ablations(model, trace, tokens[N:], [ablation])
    # direct effects go another way than the full run, which rounds
    assert float(found.kl.max()) < 1e-20 if effect == "direct" else found.kl.tolist() == [0.0] * M


def test_the_mean_of_a_constant_value_changes_nothing_that_the_softmax_sums_over():
    """Where every candidate carries the mean already, zero ablation alone sees that it is gone."""
    model, tokens, trace = case("llama")
    for index in range(len(trace.layers)):
        values = trace._layer(index).values
        values[0, :, FIRST:LAST] = values[0, :, FIRST:LAST].mean(1, keepdim=True)
    everything = torch.zeros(trace.shape, dtype=torch.bool)
    everything[..., FIRST:LAST] = True
    asked = [removal(trace, Selection(everything, trace.layers), "drop", M, k.name, kind=k) for k in (ZERO, MEAN)]
    _, [zero] = measure_ablations(model, trace, tokens[N:], asked[:1])
    assert float(zero.kl.max()) > 1e-3
    branch = asked[1].branch(0)
    for index, layer in enumerate(trace.layers):
        torch.testing.assert_close(branch.layers[layer].values[0], trace.values(index), atol=1e-14, rtol=0)


@pytest.mark.parametrize("ablation", list(CHANGES))
def test_float32_is_near_float64(ablation):
    model, tokens, trace = case("qwen3")
    narrow, _, narrow_trace = case("qwen3", dtype=torch.float32)
    selection = random_selection(trace)
    [wide] = forward_influence(model, trace, tokens[N:], selection, ablation=ablation)
    [found] = forward_influence(narrow, narrow_trace, tokens[N:], selection, ablation=ablation)
    torch.testing.assert_close(found.kl.double(), wide.kl, atol=1e-5, rtol=0)


def test_wrong_kinds_are_refused_in_a_line():
    model, tokens, trace = case("llama")
    with pytest.raises(UsageError, match=r"ablation 'zeroes' is unknown \(did you mean 'zero'\?\); it is remove"):
        forward_influence(model, trace, tokens[N:], random_selection(trace), ablation="zeroes")
    with pytest.raises(UsageError, match="`rerotate` closes the gaps that removal leaves; ablation 'zero' leaves none"):
        removal(trace, random_selection(trace), "drop", M, rerotate=True, kind=ZERO)


def test_every_layer_with_a_window_is_left_alone():
    model = wrap_model(case("gemma3_text")[0].model)
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    trace = record(model, tokens[:N], span=N + M, first=FIRST, last=LAST)
    branch = removal(trace, random_selection(trace), "drop", M, kind=ZERO).branch(M)
    assert torch.equal(branch.layers[0].values, trace.cache.layers[0].values)
    assert not torch.equal(branch.layers[1].values, trace.cache.layers[1].values)

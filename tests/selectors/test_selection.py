"""Properties of selections: exact counts, ties, candidates, budgets, and dividing between layers and heads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_influence.errors import UsageError
from forward_influence.selectors.budgets import adaptive_head_counts, apportion
from forward_influence.selectors.selection import FEWEST_TO_CHOOSE, Budget, Candidates, Selection, protected_mask, top
from forward_influence.utils.ranges import ranges, whole_numbers

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


@st.composite
def cases(draw, levels: int | None = None):
    """(scores, candidates, number), with many ties where `levels` is small."""
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    first, count, last = draw(st.integers(0, 4)), draw(st.integers(1, 30)), draw(st.integers(0, 5))
    n = first + count + last
    levels = levels or draw(st.sampled_from([1, 2, 3, 1000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randint(levels, (layers, heads, n), generator=generator).float()
    return scores, Candidates(n, first, first + count), draw(st.integers(1, count))


@given(cases())
def test_top_takes_the_best_exactly_and_of_equals_the_earlier(case):
    scores, candidates, number = case
    mask = top(scores, candidates, number)
    for layer, head in [(la, h) for la in range(scores.shape[0]) for h in range(scores.shape[1])]:
        row = scores[layer, head].tolist()
        order = sorted(range(candidates.first, candidates.last), key=lambda i: (-row[i], i))
        assert mask[layer, head].nonzero().flatten().tolist() == sorted(order[:number])


@given(cases())
def test_a_larger_number_only_adds(case):
    scores, candidates, number = case
    smaller = top(scores, candidates, max(0, number - 1))
    assert not (smaller & ~top(scores, candidates, number)).any()


@given(cases())
def test_order_of_scores_is_all_that_counts(case):
    scores, candidates, number = case
    assert torch.equal(top(scores, candidates, number), top(scores.double() * 3 - 100, candidates, number))


@given(cases(), st.integers(0, 2**31))
def test_counts_may_differ_by_layer_and_head(case, seed):
    scores, candidates, _ = case
    counts = torch.randint(0, candidates.count + 1, scores.shape[:2], generator=torch.Generator().manual_seed(seed))
    mask = top(scores, candidates, counts)
    assert torch.equal(mask.sum(-1), counts)
    assert not (mask & protected_mask(candidates, mask.device)).any()


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(0, 60),
    st.floats(0, 1),
)
def test_apportioned_shares_are_exact_bounded_and_in_order(weights, lowest, spread, fill):
    highest = lowest + spread
    total = round(len(weights) * (lowest + fill * spread))
    counts = apportion(weights, total, lowest, highest)
    assert sum(counts) == total
    assert all(lowest <= c <= highest for c in counts)
    for i, one in enumerate(weights):
        for j, other in enumerate(weights):
            if one > other * (1 + 1e-6) + 1e-6:
                assert counts[i] >= counts[j] - (1 if counts[i] < highest else 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 400))
def test_unbounded_shares_are_largest_remainders(weights, total):
    counts = apportion(weights, total, 0, total)
    exact = [total * w / sum(weights) for w in weights]
    assert all(math.floor(e - 1e-9) <= c <= math.ceil(e + 1e-9) for c, e in zip(counts, exact, strict=True))


def test_apportion_by_hand():
    assert apportion([1, 1, 1], 10, 0, 10) == [4, 3, 3]
    assert apportion([0, 0], 4, 1, 10) == [2, 2]
    assert apportion([100, 1, 1], 12, 1, 6) == [6, 3, 3]
    assert apportion([5.5, 3.5, 1.0], 10, 1, 10) == [6, 3, 1]
    for bad in (lambda: apportion([1, 1], 5, 3, 9), lambda: apportion([1, 1], 5, 0, 2)):
        with pytest.raises(ValueError, match="cannot be divided"):
            bad()
    with pytest.raises(ValueError, match="finite"):
        apportion([1, float("nan")], 2, 0, 2)


@given(cases())
def test_adaptive_heads_keep_totals_and_the_safeguard(case):
    scores, candidates, number = case
    layers, heads, _ = scores.shape
    even = torch.full((layers, heads), number)
    counts = adaptive_head_counts(scores, candidates, even)
    assert torch.equal(counts.sum(1), even.sum(1))
    assert int(counts.min()) >= max(1, int(0.2 * number))
    assert int(counts.max()) <= candidates.count
    safe = max(1, int(0.2 * number))
    mask = top(scores, candidates, counts)
    for layer in range(layers):
        lowest_free = [scores[layer, h][mask[layer, h]].sort(descending=True).values[safe:] for h in range(heads)]
        taken = torch.cat(lowest_free)
        inside = ~protected_mask(candidates, mask.device) & ~mask[layer]
        left = scores[layer][inside]
        if len(taken) and len(left):
            assert float(taken.min()) >= float(left.max()), "a head gave away what another had use for"


@given(cases())
def test_a_larger_number_only_adds_to_adaptive_heads(case):
    scores, candidates, number = case

    def mask(count):
        even = torch.full(scores.shape[:2], count)
        return top(scores, candidates, adaptive_head_counts(scores, candidates, even))

    assert not (mask(max(1, number - 1)) & ~mask(number)).any()


@given(cases())
def test_a_larger_number_only_adds_in_keep_mode(case):
    scores, candidates, number = case
    smaller, larger = (
        Selection(top(scores, candidates, count) | protected_mask(candidates, scores.device), tuple(range(len(scores))))
        for count in (number - 1, number)
    )
    assert not (smaller.kept("keep") & ~larger.kept("keep")).any()
    assert larger.kept("keep")[..., protected_mask(candidates, scores.device)].all()


@given(cases())
def test_heads_that_score_alike_select_alike(case):
    scores, candidates, number = case
    alike = scores[:, :1].expand(scores.shape)
    even = torch.full(scores.shape[:2], number)
    assert torch.equal(adaptive_head_counts(alike, candidates, even), even)


@given(st.floats(0.001, 0.999), st.integers(1, 5000))
def test_a_fraction_is_the_floor_and_at_least_one(fraction, n):
    text = f"{fraction:.3f}"
    count = Budget.parse(text).count(n)
    exact = round(float(text) * 1000) * n // 1000
    assert count == max(1, exact)


def test_budgets_that_others_get_wrong():
    assert Budget.parse("0.2").count(1000) == 200
    assert Budget.parse(0.29).count(100) == 29
    assert Budget.parse("0.001").count(10) == 1
    assert Budget.parse(200).count(1000) == 200
    assert Budget.parse("1.0", whole=True).count(77) == 77


@given(st.integers(80, 400), st.integers(0, 8), st.integers(0, 40), st.integers(1, 99))
def test_keep_and_drop_count_what_they_say(n, protect_first, protect_last, percent):
    candidates = Candidates.of(n, protect_first, protect_last)
    budget = Budget.parse(percent / 100)
    wanted = budget.count(n)
    try:
        assert candidates.to_choose(budget, "drop") == wanted <= candidates.count
    except UsageError:
        assert wanted > candidates.count
    try:
        chosen = candidates.to_choose(budget, "keep")
        assert chosen + candidates.protected == wanted
        assert chosen >= FEWEST_TO_CHOOSE
    except UsageError:
        assert wanted - candidates.protected < FEWEST_TO_CHOOSE


@given(cases())
def test_kept_in_both_modes_and_restrictions(case):
    scores, candidates, number = case
    selection = Selection(top(scores, candidates, number), tuple(range(5, 5 + scores.shape[0])))
    assert torch.equal(selection.kept("drop"), ~selection.kept("keep"))
    one = selection.restricted({5}, {0})
    assert int(one.mask.sum()) == number == int(one.mask[0, 0].sum())
    with pytest.raises(UsageError, match="layers 4 cannot be ablated"):
        selection.restricted({4}, None)
    with pytest.raises(
        UsageError, match=r"^layers 0-4,8-90 cannot be ablated; the full-attention layers are 5(-[67])?$"
    ):
        selection.restricted(set(range(5)) | {5} | set(range(8, 91)), None)
    with pytest.raises(UsageError, match="kv heads"):
        selection.restricted(None, {9})


@given(st.sets(st.integers(0, 60)))
def test_ranges_read_back(numbers):
    assert set(whole_numbers(ranges(numbers) or None, "--layers") or ()) == numbers


def test_ranges_by_hand():
    assert ranges([3, 1, 2, 7, 9, 8, 20]) == "1-3,7-9,20"


@pytest.mark.parametrize(("number", "safe"), [(3, 1), (10, 2), (20, 4)])
def test_a_head_that_scores_below_all_others_keeps_a_fifth_of_an_even_share(number, safe):
    scores = torch.stack([torch.arange(100.0, 140.0), torch.arange(40.0)])[None]
    counts = adaptive_head_counts(scores, Candidates(40, 0, 40), torch.full((1, 2), number))
    assert counts.tolist() == [[2 * number - safe, safe]]

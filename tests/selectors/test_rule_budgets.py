"""Budgets and grains of rules: exact counts among the candidates, pyramids, adaptive layers and heads."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import plain_rules as plain
import pytest
import torch
from plain_rules import N, seen
from test_rules import FIRST, LAST, same, traced

from forward_influence.errors import UsageError
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import chosen, discover, final_scores, parse_selector, select
from forward_influence.selectors.information import information, layer_shares
from forward_influence.selectors.selection import Candidates
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record


def test_pyramid_falls_linearly_with_exact_totals():
    trace = traced("llama", "pyramid:window=8,beta=3", first=0, last=N - 8)
    rule = parse_selector("pyramid:window=8,beta=3")
    counts = select(rule, trace, 12, "keep").counts
    # C = 20 of 60: lo = 20/3, hi = 2*20 - lo = 33.3, but lo < window: the fallback
    assert counts.unique().tolist() == [20]
    assert "every layer holds 20, 8 protected and 12 chosen" in rule.remarks(12, Candidates(N, 0, N - 8))[0]
    counts = select(rule, trace, 18, "keep").counts
    # C = 26: lo = 26/3 = 8.67, hi = 43.33, the middle 26
    assert counts[:, 0].tolist() == [43, 26, 9]
    assert torch.equal(counts[:, :1].expand_as(counts), counts)
    assert rule.remarks(18, Candidates(N, 0, N - 8)) == ()
    dropped = select(rule, trace, 18, "drop")
    assert torch.equal(dropped.mask[..., : N - 8], select(rule, trace, 18, "keep").mask[..., : N - 8])


def test_a_pyramid_does_not_reach_into_the_window():
    rule = parse_selector("pyramid:window=8,beta=3")
    # C = 40: lo = 13.3 and hi = 66.7 would exceed 60 - 8, so hi = 52 and lo = 28
    assert rule.slope(32, Candidates(N, 0, N - 8)) == (52, 28)
    trace = traced("llama", "pyramid:window=8,beta=3", first=0, last=N - 8)
    assert select(rule, trace, 32, "keep").counts[:, 0].tolist() == [52, 40, 28]


def test_infokv_divides_its_budget_by_information():
    spec = "infokv:layers=adaptive,window=8,tau=0.1"
    trace = traced("llama", spec)
    counts = select(parse_selector(spec), trace, 12).counts
    mass = torch.stack(
        [
            ((plain.change(seen("llama"), la) + 0.1) * plain.entropy(seen("llama"), 256))[FIRST:LAST].sum()
            for la in range(3)
        ]
    )
    exact = 36 * mass / mass.sum()
    assert int(counts[:, 0].sum()) == 36
    assert float((counts[:, 0] - exact).abs().max()) < 1
    assert len(counts[:, 0].unique()) > 1


def test_information_of_protected_tokens_takes_no_budget():
    trace = traced("llama", "infokv:layers=adaptive,window=8,tau=0.1")
    change = trace.representation_change.clone()
    change[0, :FIRST] += 1000.0
    loud = dataclasses.replace(trace, recorded=trace.recorded | {"representation_change": change}, _memo={})
    assert not torch.equal(information(loud, 0.1, 256), information(trace, 0.1, 256))
    assert layer_shares(loud, 12, 0.1, 256) == layer_shares(trace, 12, 0.1, 256)


def test_adaptive_heads_equal_a_joint_choice_with_a_safeguard():
    trace = traced("llama", "attention:window=8")
    number = 10
    mask = select(parse_selector("attention:window=8,heads=adaptive"), trace, number).mask
    scores = final_scores(parse_selector("attention:window=8"), trace)[..., FIRST:LAST].clone()
    for layer in range(3):
        entries = [(float(scores[layer, h, t]), h, t) for h in range(2) for t in range(LAST - FIRST)]
        safe = {(h, int(t)) for h in range(2) for t in scores[layer, h].topk(2).indices}
        ranked = sorted(entries, key=lambda e: ((e[1], e[2]) not in safe, -e[0]))[: 2 * number]
        wanted = torch.zeros(2, LAST - FIRST, dtype=torch.bool)
        for _, head, token in ranked:
            wanted[head, token] = True
        assert torch.equal(mask[layer][:, FIRST:LAST], wanted)
    assert len(mask.sum(-1).unique()) > 1, "heads must differ for this to show anything"


def test_adaptive_heads_change_nothing_where_heads_score_alike():
    trace = traced("llama", "entropy")
    one, other = (select(parse_selector(s), trace, 9).mask for s in ("entropy", "entropy:heads=adaptive"))
    assert torch.equal(one, other)


#: The oracle looks at the continuation, which a context alone does not show: tests of its own.
EVERY = [
    *(
        f"{name}:asked=false,spread=even" if "kvzip" in name else name
        for name in discover()
        if name not in ("mix", "product", "oracle")
    ),
    "mix:0.5*attention(window=8)+0.5*entropy",
    "product:h2o*surprisal",
]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_rule_selects_exact_counts_among_the_candidates(family):
    rules = [parse_selector(spec) for spec in EVERY]
    rules += [parse_selector(s) for s in ("attention:heads=adaptive", "infokv:layers=adaptive,heads=adaptive")]
    needs = Needs.merge(need for rule in rules for need in rule.needs)
    trace = record(wrap_model(seen(family).model), seen(family).tokens, needs, first=FIRST, last=LAST)
    layers, heads, _ = trace.shape
    for rule in rules:
        mask = select(rule, trace, 7).mask
        assert not mask[..., :FIRST].any(), rule.spec
        assert not mask[..., LAST:].any(), rule.spec
        assert int(mask.sum()) == 7 * layers * heads, rule.spec
        if not rule.own_budgets and "adaptive" not in rule.spec:
            assert mask.sum(-1).unique().tolist() == [7], rule.spec
        kept = select(rule, trace, 7, "keep").mask
        assert kept[..., :FIRST].all(), rule.spec
        assert kept[..., LAST:].all(), rule.spec
        assert torch.equal(kept[..., FIRST:LAST], mask[..., FIRST:LAST]), rule.spec


#: Rules whose grain is not the mean of their scores: they draw anew, combine terms of that grain, average attention
#: before they weigh it, choose in two stages, or leave the grain to the matched rule.
OWN_GRAINS = ("random", "position-matched", "infokv", "mix", "product", "criticalkv", "vase")


@pytest.mark.parametrize("spec", [spec for spec in EVERY if spec.split(":")[0] not in OWN_GRAINS])
def test_grains_are_means(spec):
    trace = traced("llama", spec)
    entry, layer, token = (
        final_scores(parse_selector(spec + (",per=" if ":" in spec else ":per=") + per), trace)
        for per in ("entry", "layer", "token")
    )
    same(layer, entry.mean(1, keepdim=True).expand_as(entry))
    same(token, entry.mean((0, 1), keepdim=True).expand_as(entry))


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("per", ["layer", "token"])
def test_every_rule_selects_at_its_grain(spec, per):
    if spec == "position-matched":  # the grain is the matched rule's
        rule = parse_selector(f"{spec}:of=knorm(per={per})")
    else:
        rule = parse_selector(spec + (",per=" if ":" in spec else ":per=") + per)
    selection = select(rule, traced("llama", spec), 7)
    heads = selection.mask[:, :1].expand_as(selection.mask)
    assert torch.equal(selection.mask, heads), "all heads of a layer select the same"
    if per == "token" and not rule.own_budgets:
        assert selection.grain == "token"


def test_rules_whose_windows_reach_beyond_the_context_still_score():
    trace = traced("llama", "attention:window=500", "rpc:window=500", "rkv:window=500")
    for spec in ("attention:window=500", "rpc:window=500", "rkv:window=500"):
        assert final_scores(parse_selector(spec), trace).shape == trace.shape


def test_counts_of_ones_own_rule_are_checked():
    from forward_influence.selectors import Selector

    trace = traced("llama")

    class Greedy(Selector):
        name = "greedy"

        def scores(self, trace):
            return trace.tokens

        def counts(self, trace, scores, number):
            return torch.tensor(answer["counts"])[:, None]

    answer: dict[str, list] = {}
    for counts, complaint in [
        ([5, 5, 6], "sum to 32; each must be 1 to 48 and their sum 30"),
        ([0, 5, 10], "between 0 and 10"),
        ([5.0, 5.0, 5.0], "whole numbers"),
        ([5, 5, 5, 5], "broadcast to"),
    ]:
        answer["counts"] = counts
        with pytest.raises(UsageError, match=rf"rule 'greedy' gave counts.*{complaint}.*budgets\.py, line \d+\)"):
            chosen(Greedy(), trace, final_scores(Greedy(), trace), 5)
    answer["counts"] = [3, 5, 7]
    assert chosen(Greedy(), trace, final_scores(Greedy(), trace), 5).sum(-1).tolist() == [[3, 3], [5, 5], [7, 7]]


def test_a_request_says_what_its_rules_remark():
    from forward_influence.measurement.request import Request

    request = Request(selectors=("pyramid", "entropy"), budgets=("0.2", "0.6"), context=1024, continuation=16)
    assert len(request.remarks) == 1
    assert "every layer holds 272, 68 protected and 204 chosen (which drop mode removes)" in request.remarks[0]
    assert request.remarks[0].endswith("as in `attention`; use a smaller window, pyramid:window=8")
    cut = Request(selectors=("pyramid:window=8",), budgets=("0.2",), context=1024, continuation=16)
    assert "share of 14 tokens is no more than the 68 protected ones" in cut.remarks[0]
    whole = Request(selectors=("pyramid:window=8,beta=2",), budgets=("0.2",), context=1024, continuation=16)
    assert whole.remarks == ()


@pytest.mark.parametrize("mode", ["drop", "keep"])
@pytest.mark.parametrize(
    "spec", [*EVERY, "attention:heads=adaptive", "knorm:heads=adaptive", "infokv:layers=adaptive,window=8"]
)
def test_a_larger_budget_only_adds(spec, mode):
    if spec == "pyramid":
        spec = "pyramid:window=2,beta=3"  # below a window, which here is most of the context, there is no pyramid
    rule = parse_selector(spec)
    trace = traced("llama", spec)
    masks = [select(rule, trace, number, mode).mask for number in range(1, LAST - FIRST + 1)]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()


def test_a_pyramid_begins_at_a_budget_where_later_layers_lose_tokens():
    """Below it every layer holds the same, above it the last one few: nested on either side, not across."""
    rule, trace = parse_selector("pyramid:window=8,beta=3"), traced("llama", "pyramid:window=8,beta=3")
    masks = {number: select(rule, trace, number).mask for number in range(1, LAST - FIRST + 1)}
    candidates = Candidates(N, FIRST, LAST)
    begins = next(number for number in masks if rule.slope(number, candidates) is not None)
    lost = [number for number in masks if number > 1 and bool((masks[number - 1] & ~masks[number]).any())]
    assert lost == [begins]

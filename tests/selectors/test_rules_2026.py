"""Scores of the rules of 2025 and 2026 against second, plain implementations, in float64 on tiny models."""

from __future__ import annotations

import plain_rules as old
import plain_rules_2026 as plain
import pytest
import torch
from plain_rules import N, seen
from test_rules import FAMILIES, FIRST, LAST, same, scores_of, stacked, traced

from forward_influence.errors import UsageError
from forward_influence.selectors import final_scores, parse_selector, select

INSIDE = list(range(FIRST, LAST))


def chosen_sets(mask: torch.Tensor) -> list[list[set[int]]]:
    return [[set(head.nonzero().flatten().tolist()) for head in layer] for layer in mask]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", [1, 7])
def test_caote_is_what_leaving_a_token_out_does(family, kernel):
    trace, found = scores_of(family, f"caote:window=8,kernel={kernel}")
    wanted = stacked(trace, lambda la, kv: plain.caote(seen(family), la, kv, 8, kernel))
    torch.testing.assert_close(found.double(), wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", ["product", "mean", "key", "value"])
@pytest.mark.parametrize("window", [16, 0])
def test_cur(kind, window):
    trace, found = scores_of("llama", f"cur:kind={kind},window={window}")
    same(found, stacked(trace, lambda la, kv: plain.cur(seen("llama"), la, kv, window, kind)))


@pytest.mark.parametrize("family", FAMILIES)
def test_lagkv(family):
    trace, found = scores_of(family, "lagkv:lag=12")
    same(found, stacked(trace, lambda la, kv: plain.lagkv(seen(family), la, kv, 4, 12)))
    assert found[..., 40:].eq(1).all(), "the last whole partition and the rest are kept"


def test_lagkv_of_a_short_context_goes_by_position_and_says_so():
    rule = parse_selector("lagkv")
    trace = traced("llama", "lagkv")
    assert select(rule, trace, 5).mask[0, 0].nonzero().flatten().tolist() == list(range(LAST - 5, LAST))
    from forward_influence.selectors.selection import Candidates

    assert "ranks by position alone" in rule.remarks(5, Candidates(N, FIRST, LAST))[0]
    assert parse_selector("lagkv:lag=28").remarks(5, Candidates(N, FIRST, LAST)) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_capkv(family):
    trace, found = scores_of(family, "capkv:tau=3,future=30")
    wanted = stacked(trace, lambda la, kv: plain.capkv(seen(family), la, kv, 3, 30))
    same(found[..., 4:], wanted)
    assert float(found[..., :4].min()) > float(wanted.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_q_filter(family):
    trace, found = scores_of(family, "q-filter")
    same(found, stacked(trace, lambda la, kv: plain.q_filter(seen(family), la, kv)))


@pytest.mark.parametrize("family", FAMILIES)
def test_triattention(family):
    trace, found = scores_of(family, "triattention:furthest=64")
    wanted = stacked(trace, lambda la, kv: plain.triattention(seen(family), la, kv, 64, INSIDE))
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)  # its rotary tables are float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [11, 16, 64])
def test_compactor(family, chunk):
    spec = f"compactor:chunk={chunk},blend=0.5"
    trace, found = scores_of(family, spec)
    for row, layer in enumerate(trace.layers):
        geometry = trace.geometry[row]
        wanted = plain.compactor(seen(family), layer, chunk, 0.5, geometry.scaling, geometry.sinks)
        torch.testing.assert_close(found[row].double(), wanted, atol=1e-6, rtol=1e-6)
    for pieces in (1, 7, N):
        again = traced(family, spec, chunk=pieces)
        torch.testing.assert_close(final_scores(parse_selector(spec), again), found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [0.03, 0.1])
def test_lazy_eviction(family, alpha, monkeypatch):
    spec = f"lazy-eviction:alpha={alpha},window=8"
    trace, found = scores_of(family, spec)
    wanted = stacked(trace, lambda la, kv: plain.lazy_eviction(seen(family), la, kv, alpha))
    same(found, wanted)
    assert 0.1 < float((wanted > 0).double().mean()) < 0.9, "some come back, some never do"
    monkeypatch.setattr("forward_influence.tracing.signals.attended_steps.SCORE_ELEMENTS", 4 * N * 3)
    same(final_scores(parse_selector(spec), traced(family, spec)), wanted)


@pytest.mark.parametrize("number", [1, 2, 9, 25, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_criticalkv_chooses_in_two_stages(family, number):
    spec = "criticalkv:of=attention(window=8)"
    trace = traced(family, spec)
    found = chosen_sets(select(parse_selector(spec), trace, number).mask)
    for row, layer in enumerate(trace.layers):
        for kv in range(trace.kv_heads):
            assert found[row][kv] == plain.criticalkv(seen(family), layer, kv, number, INSIDE)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt_oss", "mistral"])
def test_output_projections_are_found(family, order):
    from forward_influence.selectors.output_norms import output_norms

    trace = traced(family, "criticalkv")
    for row, layer in enumerate(trace.layers):
        for kv in range(trace.kv_heads):
            same(output_norms(trace, row, order).mean(1)[kv], plain.value_norms(seen(family), layer, kv, order))


def test_criticalkv_with_heads_that_compete_has_the_other_rules_budgets():
    spec = "criticalkv:of=attention(window=8,heads=adaptive)"
    trace = traced("llama", spec)
    found, base = (select(parse_selector(s), trace, 9).mask for s in (spec, "attention:window=8,heads=adaptive"))
    assert torch.equal(found.sum(-1), base.sum(-1)) and len(found.sum(-1).unique()) > 1
    assert not torch.equal(found, base)
    counts = found.sum(-1)
    for row, layer in enumerate(trace.layers):
        for kv in range(trace.kv_heads):
            assert chosen_sets(found)[row][kv] == plain.criticalkv(
                seen("llama"), layer, kv, int(counts[row, kv]), INSIDE
            )


@pytest.mark.parametrize("length", [1, 7, 20, 100])
def test_chunkkv_chooses_whole_chunks(length):
    spec = f"chunkkv:of=attention(window=8),length={length}"
    trace, found = scores_of("llama", spec)
    for row, layer in enumerate(trace.layers):
        base = [old.snapkv(seen("llama"), layer, kv) for kv in range(trace.kv_heads)]
        wanted = plain.chunkkv(seen("llama"), layer, base, length, INSIDE)
        same(found[row], wanted.expand_as(found[row]))
    if length == 7:  # 4-6, 7-13, ..., 49-51 are the chunks' candidates
        mask = select(parse_selector(spec), trace, 14).mask
        cut = [len({int(t) // 7 for t in head.nonzero()}) for layer in mask for head in layer]
        assert max(cut) <= 4, "two whole chunks, or parts of chunks that protected tokens cut"


def test_vase_takes_wide_values_and_draws_the_rest():
    rule = parse_selector("vase:of=attention(window=8)")
    trace = traced("llama", "vase:of=attention(window=8)")
    wide = torch.stack([trace.values(i) for i in range(3)])
    wide = (wide.amax(-1) - wide.amin(-1))[..., FIRST:LAST].sort(-1, descending=True).indices[..., :5] + FIRST
    drawn = torch.zeros(trace.shape)
    for seed in range(60):
        mask = select(rule.at(seed), trace, 20).mask
        assert mask.gather(-1, wide).all() and mask.sum(-1).eq(20).all()
        drawn += mask
    assert int((drawn[0, 0] > 0).sum()) > 20
    one = torch.zeros(trace.shape)
    for seed in range(800):  # of a budget of 1 none goes by range: the plain weighted draw
        one += select(rule.at(seed), trace, 1).mask
    share = final_scores(parse_selector("attention:window=8"), trace)[..., FIRST:LAST]
    share = share / share.sum(-1, keepdim=True)
    error = (one[..., FIRST:LAST] / 800 - share).abs()
    assert float((error / (share * (1 - share) / 800).sqrt().clamp_min(1e-3)).max()) < 5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_one_order_serves_every_budget_of_a_choice_in_two_stages(share):
    from forward_influence.selectors.stages import in_two_stages

    trace = traced("llama")
    first, second = (torch.randint(0, 9, trace.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    scores = in_two_stages(first, second, share, trace)
    for number in (1, 2, 3, 10, 37, LAST - FIRST):
        order = scores[..., FIRST:LAST].sort(dim=-1, descending=True, stable=True).indices[..., :number] + FIRST
        for layer in range(3):
            for kv in range(2):
                wanted = plain.two_stages(first[layer, kv], second[layer, kv], number, share, INSIDE)
                assert set(order[layer, kv].tolist()) == wanted


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("criticalkv:of=random", "draws at random"),
        ("criticalkv:of=attentoin", "did you mean 'attention'"),
        ("criticalkv:share=2", "share lies in 0 to 1"),
        ("criticalkv:heads=adaptive", "give the head budgets to the other rule"),
        ("criticalkv:per=token,of=knorm(per=layer)", "give the grain once"),
        ("chunkkv:length=0", "at least 1"),
        ("chunkkv:of=attention(heads=adaptive)", "for all heads of a layer"),
        ("vase:share=-1", "outside 0 to 1"),
        ("vase:of=pyramid", "budgets of its own"),
        ("vase:heads=adaptive", "not comparable between heads"),
        ("caote:pooling=some", "pooling=some is unknown"),
        ("caote:group=some", "group=some is unknown"),
        ("caote:kernel=2", "odd number"),
        ("lagkv:lag=1", "from 2"),
        ("cur:kind=keys", "kind=keys is unknown"),
        ("cur:window=-1", "0 or more"),
        ("capkv:future=0", "future is 1 to"),
        ("triattention:furthest=0", "from 1 to"),
        ("triattention:group=min", "group=min is unknown"),
        ("compactor:chunk=1", "from 2"),
        ("lazy-eviction:alpha=0", "in whole millionths"),
        ("lazy-eviction:alpha=0.0000015", "in whole millionths"),
    ],
)
def test_senseless_parameters_are_refused(spec, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_selector(spec)

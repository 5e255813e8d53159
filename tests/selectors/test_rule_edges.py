"""Rules at their edges: 16 bits, equal scores, short contexts, budgets of next to nothing, values of nothing."""

from __future__ import annotations

import math

import pytest
import torch
from plain_rules import seen
from tiny import tiny_model

from forward_influence.compression import compress
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import discover, final_scores, parse_selector, select
from forward_influence.selectors.selection import Budget, Candidates
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

_CHANGED = {
    "mix": "mix:0.5*attention+0.5*entropy",
    "product": "product:attention*surprisal",
    "kvzip": "kvzip:asked=false",
    "kvzip-plus": "kvzip-plus:asked=false",
}
#: Every rule that a context alone shows.
SPECS = [_CHANGED.get(name, name) for name in discover() if name != "oracle"]


def traced(spec: str, dtype: torch.dtype, tokens: torch.Tensor, first: int, last: int, family: str = "llama"):
    model = wrap_model(tiny_model(family, dtype))
    return record(model, tokens, Needs.merge(parse_selector(spec).needs), first=first, last=last)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [6, 17])
def test_contexts_shorter_than_windows_chunks_partitions_and_sinks(spec, n):
    """Of 4 protected tokens at the start and 1 at the end, 1 to 12 candidates are left."""
    tokens = seen("llama").tokens[:n]
    trace = traced(spec, torch.float32, tokens, 4, n - 1)
    scores = final_scores(parse_selector(spec), trace)
    assert torch.isfinite(scores[..., 4 : n - 1]).all()
    mask = select(parse_selector(spec), trace, 1).mask
    assert int(mask.sum()) == mask.shape[0] * mask.shape[1] and mask[..., 4 : n - 1].sum() == mask.sum()
    whole = select(parse_selector(spec), trace, n - 5).mask
    assert whole[..., 4 : n - 1].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_sixteen_bits_give_scores_of_float32(spec, dtype):
    """Scores tie in 16 bits where float32 tells them apart; none may be infinite or NaN."""
    tokens = seen("llama").tokens
    if spec in ("attention", "caote", "pyramid", "rpc"):  # what lies in their window has no score
        spec += ":window=8"
    scores = final_scores(parse_selector(spec), traced(spec, dtype, tokens, 4, 52))
    assert scores.dtype in (torch.float32, torch.float64)
    assert torch.isfinite(scores[..., 4:52]).all()
    if spec not in ("recent", "first", "streaming", "lagkv", "lazy-eviction", "chunkkv"):  # these rank in few steps
        distinct = min(len(row.unique()) for layer in scores[..., 4:52] for row in layer)
        assert distinct >= 40, "scores were rounded to 16 bits"


@pytest.mark.parametrize("spec", SPECS)
def test_one_token_over_and_over_ties_and_nothing_breaks(spec):
    """Equal keys and values but for the position: whatever ties, exact counts, the same twice, the earlier token."""
    tokens = torch.full((60,), 7)
    trace = traced(spec, torch.float32, tokens, 4, 52)
    rule = parse_selector(spec)
    scores = final_scores(rule, trace)
    assert torch.isfinite(scores[..., 4:52]).all()
    mask = select(rule, trace, 9).mask
    assert torch.equal(mask, select(rule, trace, 9).mask)
    assert int(mask.sum()) == 9 * mask.shape[0] * mask.shape[1]
    for layer in range(mask.shape[0]):
        for head in range(mask.shape[1]):
            inside, taken = scores[layer, head, 4:52], mask[layer, head, 4:52]
            if not taken.all():
                border = inside[taken].min()
                left = ((inside == border) & ~taken).nonzero()
                kept = ((inside == border) & taken).nonzero()
                if len(left) and not rule.own_budgets:
                    assert int(kept.max()) < int(left.min()), "of equal scores the earlier token"


@pytest.mark.parametrize("spec", SPECS)
def test_a_layer_whose_values_are_all_zero_gives_no_nan(spec):
    """A head that writes nothing: norms, ranges and shares of 0 are divided by nowhere."""
    model = wrap_model(tiny_model("llama", torch.float32, seed=5))
    before = model.model.model.layers[1].self_attn.v_proj.weight.clone()
    try:
        with torch.no_grad():
            model.model.model.layers[1].self_attn.v_proj.weight.zero_()
        model = wrap_model(model.model)
        rule = parse_selector(spec)
        trace = record(model, seen("llama").tokens, Needs.merge(rule.needs), first=4, last=52)
        assert not trace.values(1).any()
        assert torch.isfinite(final_scores(rule, trace)[..., 4:52]).all()
    finally:
        with torch.no_grad():
            model.model.model.layers[1].self_attn.v_proj.weight.copy_(before)


@pytest.mark.parametrize("spec", SPECS)
def test_a_budget_that_rounds_to_nothing_keeps_or_drops_one(spec):
    budget = Budget.parse("0.001")
    assert Candidates(60, 4, 52).to_choose(budget, "drop") == 1
    trace = traced(spec, torch.float32, seen("llama").tokens, 4, 52)
    assert int(select(parse_selector(spec), trace, 1).mask.sum()) == trace.shape[0] * trace.shape[1]


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in ("rpc", "position-matched")])
def test_a_compressor_of_next_to_nothing_still_generates(spec):
    model = tiny_model("llama", torch.float32)
    prompt = seen("llama").tokens[None]
    with compress(model, spec, budget=0.001, protect_first=0, protect_last=1) as cache:
        out = model.generate(prompt, past_key_values=cache, max_new_tokens=3, do_sample=False)
        held = cache.stats.events[0].held
    assert out.shape[1] == 63
    assert math.isclose(float(held.double().mean()), 1) and int(held.min()) >= 1

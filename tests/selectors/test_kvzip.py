"""KVzip and KVzip+: scores from a second, plain reading, budgets over the whole model, and where they work."""

from __future__ import annotations

import dataclasses

import plain_rules_2026 as plain
import pytest
import torch
from plain_rules import N, seen
from test_rules import FIRST, LAST, same, stacked
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer

from forward_influence.compression import compress, make_compressor
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.measurement.costs import plan
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.models.sizes import Sizes
from forward_influence.selectors import final_scores, parse_selector, select
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

RULES = ("kvzip", "kvzip-plus")


def recorded(spec: str, s, tokenizer=None):
    needs = Needs.merge(parse_selector(spec).needs)
    return record(wrap_model(s.model, tokenizer), s.tokens, needs, first=FIRST, last=LAST, chunk=13)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("piece", [25, 2048])
@pytest.mark.parametrize("name", RULES)
def test_scores_are_those_of_a_plain_second_reading(family, piece, name, monkeypatch):
    monkeypatch.setattr("forward_influence.selectors.reconstruction.CHUNK", 16)  # the pass goes in parts, too
    spec, s = f"{name}:asked=false,piece={piece}", seen(family)
    trace = recorded(spec, s)
    found = final_scores(parse_selector(spec), trace)
    geometry = {layer: trace.geometry[row] for row, layer in enumerate(trace.layers)}

    def wanted(layer, kv):
        one = geometry[layer]
        return plain.kvzip(s, layer, kv, piece, [[]], one.scaling, one.sinks, name == "kvzip-plus")

    same(found[..., 4:], stacked(trace, wanted)[..., 4:])
    assert float(found[..., :4].min()) > float(found[..., 4:].max())


@pytest.mark.parametrize("chat", [False, True])
def test_the_model_is_asked_in_its_own_words(chat):
    s, tokenizer = seen("llama", vocab_size=VOCABULARY), byte_tokenizer(chat)
    trace = recorded("kvzip:piece=25", s, tokenizer)
    found = final_scores(parse_selector("kvzip:piece=25"), trace)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    turn = ids("<|end|><|assistant|>" if chat else "\n")
    first = [*ids("\n\nRepeat the previous context exactly."), *turn]
    later = [*ids("\n\nRepeat the part of the previous context exactly, starting with"), -1, *turn]
    scaling = trace.geometry[0].scaling
    wanted = stacked(trace, lambda la, kv: plain.kvzip(s, la, kv, 25, [first, later], scaling, None, False))
    same(found[..., 4:], wanted[..., 4:])


def test_what_the_chat_template_puts_in_front_is_not_repeated():
    tokenizer = byte_tokenizer(chat=True)
    front = tokenizer("<|user|>", add_special_tokens=False)["input_ids"]
    model = tiny_model("llama", vocab_size=VOCABULARY)
    tokens = torch.cat([torch.tensor(front), seen("llama").tokens])
    trace = record(wrap_model(model, tokenizer), tokens, Needs.merge({"second_reading"}))
    found = final_scores(parse_selector("kvzip"), trace)
    assert found[..., 4 : len(front)].eq(0).all() and found[..., len(front) :].gt(0).all()


def test_without_a_tokenizer_it_is_not_asked_in_silence():
    trace = recorded("kvzip", seen("llama"))
    with pytest.raises(UsageError, match="came without a tokenizer, so that it cannot be asked; give asked=false"):
        final_scores(parse_selector("kvzip"), trace)


@pytest.mark.parametrize("number", [1, 7, 30, 48])
def test_layers_and_heads_compete_for_one_budget(number):
    trace = recorded("kvzip:asked=false", seen("llama"))
    scores = final_scores(parse_selector("kvzip:asked=false"), trace)[..., FIRST:LAST]
    mask = select(parse_selector("kvzip:asked=false"), trace, number).mask[..., FIRST:LAST]
    assert int(mask.sum()) == number * 6 and int(mask.sum(-1).min()) >= 1
    crowded = mask & (mask.sum(-1, keepdim=True) > 1)  # a head's only entry is its own, whatever the others score
    left = scores.masked_fill(mask, -1).max()
    assert not crowded.any() or float(scores[crowded].min()) >= float(left)
    layer = select(parse_selector("kvzip:asked=false,spread=layer"), trace, number).counts
    assert layer.sum(-1).tolist() == [2 * number] * 3
    even = select(parse_selector("kvzip:asked=false,spread=even"), trace, number).counts
    assert even.unique().tolist() == [number]
    if number == 7:
        assert len(mask.sum((1, 2)).unique()) > 1


@pytest.mark.parametrize("name", RULES)
def test_a_prompt_is_compressed_once_and_generation_goes_on(name):
    model = tiny_model("llama")
    prompt = seen("llama").tokens[None]
    rule = f"{name}:asked=false"
    with compress(model, rule, budget=0.5, protect_last=8) as cache:
        out = model.generate(prompt, past_key_values=cache, max_new_tokens=5, do_sample=False)
        held = [layer.positions().tolist() for layer in cache.layers]
        assert cache.stats.compressions == 1 and int(cache.stats.events[0].held.sum()) == N // 2 * 6
    assert out.shape[1] == N + 5
    trace = recorded(rule, seen("llama"))
    trace = dataclasses.replace(trace, first=4, last=N - 8, _memo={})
    mask = select(parse_selector(rule), trace, N // 2 - 12, "keep").mask
    for layer, rows in enumerate(held):
        for kv, row in enumerate(rows):
            assert [p for p in row if 0 <= p < N] == mask[layer, kv].nonzero().flatten().tolist()
    with pytest.raises(UsageError, match="reads the whole prompt again and compresses it once"):
        make_compressor(rule, 0.5, every=10)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_context_that_lost_tokens_is_not_read_again():
    model = tiny_model("llama")
    with compress(model, "kvzip:asked=false", budget=30, protect_last=8) as cache, torch.no_grad():
        model(seen("llama").tokens[None], past_key_values=cache)
        with pytest.raises(ForwardInfluenceError):
            cache.compress()


def test_a_second_reading_needs_positions():
    s = seen("llama", max_position_embeddings=100)
    with pytest.raises(UsageError, match="takes 120 positions, the model was made for 100"):
        final_scores(parse_selector("kvzip:asked=false"), recorded("kvzip", s))
    assert final_scores(parse_selector("kvzip:asked=false,piece=30"), recorded("kvzip:piece=30", s)).shape[-1] == N


def test_plans_count_the_second_reading():
    sizes = Sizes(layers=3, query_heads=4, kv_heads=2, head_size=8, hidden=32, intermediate=64, vocabulary=97)
    made = {"context": 256, "continuation": 64, "protect_last": 8}
    bare, again = (plan(sizes, Request((name,), **made), 1) for name in ("knorm", "kvzip:spread=even"))
    context = 2.0 * sizes.body_parameters * 256 + 4.0 * 3 * 4 * 8 * (256 * 256 + 256 * 257 / 2)
    assert again.operations - bare.operations == pytest.approx(context)
    assert again.memory.choosing > bare.memory.choosing


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("kvzip:piece=0", "from 1"),
        ("kvzip:spread=heads", "spread=heads is unknown"),
        ("kvzip:per=token", "need spread=even"),
        ("kvzip-plus:heads=adaptive", "need spread=even"),
        ("mix:kvzip+knorm", "budgets of its own"),
    ],
)
def test_senseless_parameters_are_refused(spec, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_selector(spec)

"""Whose uncertainty an entropy is: against a loop of decoding steps of transformers alone, one token at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from float64 import Float64
from tiny import tiny_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from forward_influence.compression import Compressor, compress, make_compressor
from forward_influence.compression.contenders import Contender, needs_of
from forward_influence.compression.schemes import SCHEMES
from forward_influence.models.loading import wrap_model
from forward_influence.selectors import parse_selector
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.tracing.store import packed, unpacked

N, PROMPT, EVERY, FIRST, LAST, BUDGET = 72, 40, 8, 4, 6, 0.5
BOTH = Needs.merge({"entropy:9", "next_entropy:9", "surprisal"})


def tokens_of(n: int = N) -> Tensor:
    return torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(5))


def nats(logits: Tensor, top_k: int) -> float:
    """Entropy of the softmax over the largest logits."""
    return float(torch.distributions.Categorical(logits=logits.topk(min(top_k, len(logits))).values).entropy())


def steps(model: PreTrainedModel, tokens: Tensor, cache: DynamicCache) -> Iterator[tuple[int, Tensor]]:
    """(position, the logits that the model gives there), token by token; positions never move."""
    for position, token in enumerate(tokens.tolist()):
        output = model(
            torch.tensor([[token]]), past_key_values=cache, position_ids=torch.tensor([[position]]), use_cache=True
        )
        yield position, output.logits[0, -1]


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_recorded_entropy_is_that_of_the_step_before_each_token(family, chunk):
    model, tokens = tiny_model(family), tokens_of()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")  # the one that knows soft-capping
    with torch.no_grad():
        given = torch.tensor([nats(logits, 9) for _, logits in steps(eager, tokens, DynamicCache(config=model.config))])
    trace = record(wrap_model(model), tokens, BOTH, chunk=chunk)
    torch.testing.assert_close(trace.entropy_of(9, "next").float(), given, atol=1e-6, rtol=0)
    torch.testing.assert_close(trace.entropy_of(9)[1:].float(), given[:-1], atol=1e-6, rtol=0)
    assert float(trace.entropy_of(9)[0]) == 0
    assert float((trace.entropy_of(9)[1:] - trace.entropy_of(9, "next")[1:]).abs().max()) > 0.01


@pytest.mark.parametrize("alignment", ["own", "next"])
@pytest.mark.parametrize("passes", [1, 3])
def test_decoding_keeps_what_plain_steps_over_a_shrinking_cache_call_most_uncertain(alignment, passes):
    """Entropy is one number per token, so that whole tokens go and a plain cache can be cut by hand.

    `passes`: the prompt comes in so many; a value then crosses the border of two passes.
    """
    model, tokens = tiny_model("llama"), tokens_of()
    given: list[float] = []  # entropy of the distribution given at each position
    held, kept, due = [], [], PROMPT
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Float64():
        wanted_logits = []
        for position, logits in steps(model, tokens, cache):
            given.append(nats(logits, 256))
            wanted_logits.append(logits)
            held.append(position)
            if position + 1 == due:
                seen, due = position + 1, due + EVERY
                number = int(BUDGET * seen)
                score = {j: (0.0 if j == 0 else given[j - 1]) if alignment == "own" else given[j] for j in held}
                inside = sorted(held[FIRST : len(held) - LAST], key=lambda j: -score[j])[: number - FIRST - LAST]
                stay = sorted([*held[:FIRST], *inside, *held[len(held) - LAST :]])
                index = torch.tensor([held.index(j) for j in stay])
                for layer in cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]
                held = stay
                kept.append(list(stay))
    found, logits = [], []
    rule = f"entropy:alignment={alignment}"
    # the prompt's first passes are a prompt of their own, so the schedule is kept by hand
    compressor = make_compressor(rule, BUDGET, every=1000, prefill=False, protect_last=LAST)
    with torch.no_grad(), Float64(), compress(model, compressor) as ours:
        for part in [*tokens[:PROMPT].tensor_split(passes), *tokens[PROMPT:].split(1)]:
            logits.append(model(part[None], past_key_values=ours).logits[0])
            seen = ours.get_seq_length()
            if seen >= PROMPT and (seen - PROMPT) % EVERY == 0:
                ours.compress()
                found.append(ours.layers[0].positions()[0].tolist())
                assert all(layer.positions().tolist() == [found[-1]] * 2 for layer in ours.layers)
    assert len(kept) == 5
    assert found == kept
    torch.testing.assert_close(torch.cat(logits)[PROMPT:], torch.stack(wanted_logits)[PROMPT:], atol=1e-10, rtol=0)


def test_the_alignments_differ_in_what_they_keep():
    model, tokens = tiny_model("llama"), tokens_of()
    held = []
    for alignment in ("own", "next"):
        with torch.no_grad(), compress(model, f"entropy:alignment={alignment}", BUDGET, protect_last=LAST) as cache:
            model(tokens[None], past_key_values=cache)
        held.append(cache.layers[0].positions()[0].tolist())
    assert held[0] != held[1]


@pytest.mark.parametrize("rule", ["infokv", "infokv:alignment=next", "entropy", "attention"])
def test_dividing_between_layers_reads_the_rules_own_alignment(rule):
    selector = parse_selector(rule)
    wanted = "next_entropy:256" if "next" in rule else "entropy:256"
    assert {n for n in SCHEMES["layers"].needs(selector) if "entropy" in n} == {wanted}
    compressor = make_compressor(rule, BUDGET, scheme="layers", protect_last=LAST)
    assert compressor.needs == needs_of([_given(compressor)])
    model = tiny_model("llama")
    with torch.no_grad(), compress(model, compressor) as cache:
        model(tokens_of()[None], past_key_values=cache)
    assert cache.stats.compressions == 1


def _given(compressor: Compressor) -> Contender:
    """A contender whose compressor is ready."""
    contender = Contender(compressor.name, compressor.budget.text)
    contender.__dict__["compressor"] = compressor
    return contender


def test_a_kept_trace_brings_both_alignments_back_and_not_one_for_the_other():
    model, tokens = wrap_model(tiny_model("llama")), tokens_of()
    trace = record(model, tokens, BOTH)
    again = unpacked(packed(trace), model, BOTH, 0, N, False)
    assert again is not None
    for alignment in ("own", "next"):
        assert torch.equal(again.entropy_of(9, alignment), trace.entropy_of(9, alignment))
    own = packed(record(model, tokens, Needs.merge({"entropy:9"})))
    assert unpacked(own, model, Needs.merge({"next_entropy:9"}), 0, N, False) is None
    assert unpacked(own, model, Needs.merge({"entropy:9"}), 0, N, False) is not None


def test_a_rule_reads_only_the_alignment_that_it_declared():
    trace = record(wrap_model(tiny_model("llama")), tokens_of(), BOTH)
    own = trace.limited(Needs.merge({"entropy:9"}))
    assert own.entropy_of(9) is not None
    with pytest.raises(Exception, match=r'needs=\{"next_entropy:9"\}'):
        own.entropy_of(9, "next")


def test_infokv_over_entropies_of_the_wrong_token_is_another_rule():
    model, tokens = wrap_model(tiny_model("llama")), tokens_of()
    rule = parse_selector("infokv:window=8,alpha=0")
    trace = record(model, tokens, Needs.merge(rule.needs | {"next_entropy:256"}), first=FIRST, last=N - 8)
    moved = dataclasses.replace(trace, recorded=trace.recorded | {"entropy:256": trace.entropy_of(256, "next")})
    assert not torch.allclose(rule.scores(trace), rule.scores(moved))

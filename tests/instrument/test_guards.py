"""What keeps a wrong number from ever being written: refusals at load, and an instrument that goes off again."""

from __future__ import annotations

import dataclasses
import math

import brute_force
import pytest
import torch
from tiny import FAMILIES, tiny_model
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.instrument import instrument as instrument_module
from forward_influence.instrument import probes
from forward_influence.instrument.architecture import examine
from forward_influence.instrument.attention import Geometry, attend, probabilities
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.instrument import NAME, Instrument
from forward_influence.instrument.lm_head import LinearHead, ReplayedHead, find_head


@pytest.mark.parametrize("family", list(FAMILIES))
def test_anatomy_is_found_by_looking(family):
    model = tiny_model(family)
    found = examine(model)
    assert found.layers == 3
    assert found.query_heads == 4
    assert found.kv_heads == (4 if family == "gpt_neox" else 2)
    assert found.head_size == 8
    assert found.vocabulary == 97
    assert found.hidden == 32
    assert sorted(found.decoder_layers) == [0, 1, 2]


def test_windows_decide_which_layers_are_full():
    found = examine(tiny_model("gemma3_text"))
    assert found.windows == (16, None, None)
    assert found.full_layers(100) == (1, 2)
    assert found.full_layers(16) == (0, 1, 2)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_two_instrumented_chunks_equal_one_naive_pass(family):
    """Soft-capping and sinks, which plain fused attention would lose without a word."""
    model = tiny_model(family)
    tokens = torch.arange(3, 40)
    cache = SelectiveCache(model.config)
    with torch.no_grad(), Instrument(model, cache=cache):
        parts = [model(t[None], past_key_values=cache).logits[0] for t in tokens.split(20)]
    wanted = brute_force.logits_of_full_pass(model, tokens).logits[0]
    torch.testing.assert_close(torch.cat(parts), wanted, atol=1e-10, rtol=0)


def test_a_model_whose_instrumented_logits_differ_is_refused(monkeypatch):
    model = tiny_model("llama")
    honest = probes._native_logits
    monkeypatch.setattr(probes, "_native_logits", lambda *given: honest(*given) + 0.5)
    with pytest.raises(UsageError, match=r"differ from the model's own by 0\.5"):
        examine(model)


@pytest.mark.parametrize(("family", "lost"), [("gemma2", "softcap"), ("gpt_oss", "sinks")])
def test_an_attention_that_loses_what_the_model_passes_is_noticed(monkeypatch, family, lost):
    """What plain fused attention does: the guard at load must see it in logits, not in names."""
    honest = instrument_module.attend

    def forgetful(query, key, value, geometry, *others):
        return honest(query, key, value, dataclasses.replace(geometry, **{lost: None}), *others)

    monkeypatch.setattr(instrument_module, "attend", forgetful)
    with pytest.raises(UsageError, match="differ from the model's own by"):
        examine(tiny_model(family))


def test_unknown_attention_arguments_are_refused():
    model = tiny_model("llama")
    with (
        Instrument(model, cache=SelectiveCache(model.config)),
        pytest.raises(ForwardInfluenceError, match="passes strange_new_bias"),
    ):
        model(torch.arange(3, 9)[None], strange_new_bias=torch.ones(1))


def test_instrument_is_off_after_an_exception_and_only_one_is_on():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    hooks = sum(len(m._forward_hooks) for m in model.modules())

    def fail_inside() -> None:
        with Instrument(model, decoder_layers=dict(enumerate(model.model.layers))):
            assert model.config._attn_implementation == NAME
            with pytest.raises(ForwardInfluenceError, match="another instrument is on"):
                Instrument(model).__enter__()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert model.config._attn_implementation == before
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    with Instrument(model):
        pass


def test_attention_without_an_instrument_is_refused():
    model = tiny_model("llama")
    with Instrument(model):
        pass
    attention = AttentionInterface()[NAME]
    with pytest.raises(ForwardInfluenceError, match="no instrument on"):
        attention(None, *[torch.zeros(1, 1, 1, 1)] * 3, None)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mamba", {}, "0 of 2 layers hold entries|attention interface|cut into chunks"),
        ("t5", {}, "encoder-decoder"),
    ],
)
def test_models_that_cannot_be_measured_are_refused_with_the_reason(family, changes, words):
    config = AutoConfig.for_model(family, vocab_size=97)
    if family == "mamba":
        config = AutoConfig.for_model(family, vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
        model = AutoModelForCausalLM.from_config(config)
    else:
        from transformers import T5ForConditionalGeneration

        config = AutoConfig.for_model(family, vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        model = T5ForConditionalGeneration(config)
    with pytest.raises(UsageError, match=words):
        examine(model.eval())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_heads_give_the_models_logits(family):
    model = tiny_model(family)
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        output = model(tokens, output_hidden_states=False)
        hidden = model.base_model(tokens).last_hidden_state[0]
        for head in (LinearHead(model), ReplayedHead(model)):
            torch.testing.assert_close(head(hidden), output.logits[0], atol=1e-9, rtol=0)
        assert isinstance(find_head(model, hidden, output.logits[0]), LinearHead)
        with pytest.raises(UsageError, match="cannot be recomputed"):
            find_head(model, hidden, 2 * output.logits[0] + 1)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("masking", ["causal", "none", "bool", "heads", "float", "bias"])
def test_attend_equals_written_out_sums(softcap, sinks, masking):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, h, t, 5, dtype=torch.float64, generator=generator) for h, t in ((4, 6), (2, 6), (2, 6))
    )
    geometry = Geometry(0.7, softcap, torch.randn(4, dtype=torch.float64, generator=generator) if sinks else None)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=generator)
    given = {
        "causal": (None, None, True),
        "none": (None, None, False),
        "bool": (causal[None, None], None, False),
        "heads": (causal.repeat(2, 1, 1)[None], None, False),
        "float": (torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(~causal, float("-inf")), None, False),
        "bias": (causal[None, None], bias, False),
    }[masking]
    found = attend(query, key, value, geometry, *given)
    for head in range(4):
        for i in range(6):
            logits = []
            for j in range(6):
                z = float(query[0, head, i] @ key[0, head // 2, j]) * 0.7
                z = softcap * math.tanh(z / softcap) if softcap else z
                z += float(bias[0, head, i, j]) if masking == "bias" else 0.0
                logits.append(z if masking == "none" or j <= i else float("-inf"))
            extra = [float(geometry.sinks[head])] if sinks else []
            weights = torch.tensor(logits + extra, dtype=torch.float64).softmax(0)[:6]
            torch.testing.assert_close(found[0, head, i], weights @ value[0, head // 2], atol=1e-9, rtol=0)


def test_probabilities_of_late_queries_are_causal_and_sum_to_one():
    query, key = torch.randn(4, 3, 5), torch.randn(2, 9, 5)
    weights = probabilities(query, key, Geometry(1.0))
    assert weights.shape == (2, 2, 3, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert float(weights[:, :, 0, 7:].abs().max()) == 0.0

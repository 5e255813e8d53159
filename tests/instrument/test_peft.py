"""Models adapted by PEFT: measured and compressed as adapted; learned prompts are refused in words."""

from __future__ import annotations

import copy

import brute_force
import pytest
import torch
from test_given import TOKENS, M, N, compressed, mask_of, measured
from tiny import tiny_model

import forward_influence as fi
from forward_influence.errors import UsageError
from forward_influence.models.loading import wrap_model

peft = pytest.importorskip("peft")

ADAPTERS = {
    "attention": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "head": lambda: peft.LoraConfig(r=4, target_modules=["lm_head", "k_proj"], init_lora_weights=False),
    "all": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_rslora=True, init_lora_weights=False),
    "products": lambda: peft.LoHaConfig(r=4, target_modules=["k_proj", "down_proj"], init_weights=False),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def adapted(name):
    torch.manual_seed(1)
    config = ADAPTERS[name]()
    config.task_type = "CAUSAL_LM"
    made = peft.get_peft_model(copy.deepcopy(tiny_model("llama")), config).double().eval()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if parameter.requires_grad and "lora" not in key and "hada" not in key:
                parameter.mul_(1.3)
    return made


@pytest.mark.parametrize("name", ADAPTERS)
def test_it_is_the_adapted_model_that_is_measured(name):
    """Against brute force on the merged weights, and unlike the model without its adapter."""
    given = adapted(name)
    kl, entropies = measured(given)
    merged = copy.deepcopy(given).merge_and_unload()
    removed = dict(enumerate(mask_of((3, 2, N))))
    wanted, _, _ = brute_force.influence(merged, TOKENS, N, removed)
    torch.testing.assert_close(kl, wanted, atol=1e-10, rtol=1e-8)
    log_p = brute_force.logits_of_full_pass(merged, TOKENS[:N]).logits[0].log_softmax(-1)
    torch.testing.assert_close(entropies[1:], -(log_p.exp() * log_p).sum(-1)[:-1])  # of what predicted each token
    bare, _ = measured(tiny_model("llama"))
    assert len(bare) == M and float((kl - bare).abs().max()) > 1e-3
    assert wrap_model(given).spec == "LlamaForCausalLM+default"
    assert wrap_model(given).provenance["note"] == "given as an object with adapter default"


def test_generating_with_a_compressed_cache_is_the_adapted_models():
    given = adapted("attention")
    for one, other in zip(compressed(given), compressed(copy.deepcopy(given).merge_and_unload()), strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_after_it_was_adapted():
    given = adapted("attention")
    for one, other in zip(measured(torch.compile(given, backend="eager")), measured(given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_learned_prompts_are_refused_in_words(kind):
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    given = peft.get_peft_model(copy.deepcopy(tiny_model("llama", torch.float32)), config)
    with pytest.raises(UsageError, match=r"its PEFT adapter \(\w+\) does more than the model inside shows"):
        wrap_model(given)
    with pytest.raises(UsageError, match="does more than the model inside shows"), fi.compress(given):
        pass


def test_what_the_wrapper_does_beside_the_model_is_found_by_running_it():
    given = adapted("attention")
    given.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(UsageError, match="does more than the model inside shows"):
        wrap_model(given)

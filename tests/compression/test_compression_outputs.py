"""What a pass inside a `compress` block is asked for beside logits: given whole, or refused in words."""

from __future__ import annotations

import copy

import pytest
import torch
from test_given import measured
from tiny import tiny_model

from forward_influence.compression import compress
from forward_influence.compression.passes import CHUNK
from forward_influence.errors import UsageError
from forward_influence.models.loading import wrap_model

WORDS = r"attention weights are not given inside a `with compress\(...\)` block"


def prompt(length: int) -> torch.Tensor:
    return torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(0))


def test_attention_weights_are_refused_in_words_and_not_empty():
    raw = copy.deepcopy(tiny_model("llama"))
    raw.set_attn_implementation("eager")
    with torch.no_grad():
        assert raw(prompt(5), output_attentions=True).attentions[0].shape == (1, 4, 5, 5)
    with torch.no_grad(), compress(raw, "h2o", budget=16) as cache:
        for call in (raw, raw.model):
            with pytest.raises(UsageError, match=WORDS):
                call(prompt(5), past_key_values=cache, output_attentions=True)
        with pytest.raises(UsageError, match="attention weights are not kept where a cache is compressed"):
            raw.generate(
                prompt(5), past_key_values=cache, output_attentions=True, return_dict_in_generate=True, max_new_tokens=3
            )
        raw(prompt(40), past_key_values=cache)  # and goes on
        assert int(cache.stats.held.max()) == 16


def test_attention_weights_asked_for_in_the_configuration():
    raw = copy.deepcopy(tiny_model("llama"))
    raw.set_attn_implementation("eager")
    raw.config.output_attentions = True
    with torch.no_grad(), compress(raw, "h2o", budget=16) as cache, pytest.raises(UsageError, match=WORDS):
        raw(prompt(5), past_key_values=cache)
    for one, other in zip(measured(raw), measured(tiny_model("llama")), strict=True):
        assert torch.equal(one, other)  # measuring does not read them


@pytest.mark.parametrize("where", ["call", "configuration"])
def test_hidden_states_of_a_long_prompt_are_of_all_its_tokens(where):
    """A prompt longer than a chunk is read in chunks, whose hidden states were the last chunk's alone."""
    raw = copy.deepcopy(tiny_model("llama", max_position_embeddings=1024))
    tokens = prompt(CHUNK + 40)
    with torch.no_grad():
        wanted = raw(tokens, output_hidden_states=True).hidden_states
    named = {"output_hidden_states": True} if where == "call" else {}
    raw.config.output_hidden_states = where == "configuration"
    with torch.no_grad(), compress(wrap_model(raw), "h2o", budget=16) as cache:
        found = raw(tokens, past_key_values=cache, **named).hidden_states
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_router_logits_of_a_long_prompt_are_of_all_its_tokens():
    from families import tiny_config
    from transformers import AutoModelForCausalLM

    config = tiny_config("mixtral")
    config.max_position_embeddings, config.sliding_window = 1024, None
    torch.manual_seed(0)
    raw = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    tokens = prompt(CHUNK + 40)
    wanted = raw(tokens, output_router_logits=True).router_logits
    with torch.no_grad(), compress(raw, "h2o", budget=16) as cache:
        found = raw(tokens, past_key_values=cache, output_router_logits=True).router_logits
    assert [one.shape for one in found] == [one.shape for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

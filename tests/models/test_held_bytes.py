"""What a cache holds in bytes, against the caches themselves; and which layers hold entries, in words."""

from __future__ import annotations

import pytest
import torch
from families import WINDOW, tiny_config, tiny_family
from transformers import AutoConfig
from transformers.cache_utils import DynamicCache

from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.compat import named_cache
from forward_influence.measurement.costs import counted
from forward_influence.models.held_bytes import cache_bytes_of
from forward_influence.models.holding import holding
from forward_influence.models.sizes import Sizes

KINDS = (
    "llama",
    "gemma3_text",
    "qwen3_next",
    "qwen3_5_moe",
    "kimi_linear",
    "nemotron_h",
    "falcon_h1",
    "zamba2",
    "jamba",
    "lfm2",
    "zaya",
    "deepseek_v3",
    "glm_moe_dsa:shared indexers",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_text:31B",
)
#: Its own code looks at numbers, of which a model without memory has none.
NOT_WITHOUT_MEMORY = "longcat_flash"


def _bytes(cache: DynamicCache) -> int:
    """Of every tensor that the cache's layers hold, alone or in a mapping."""
    total = 0
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    total += tensor.numel() * tensor.element_size()
    return total


@pytest.mark.parametrize("name", [*KINDS, NOT_WITHOUT_MEMORY])
def test_as_many_bytes_as_a_cache_holds(name):
    model = tiny_family(name, torch.float32)
    sizes = Sizes.of(model.config).holding(cache_bytes_of(backbone(model), model.config), model.config)
    for count in (5, WINDOW - 2):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with torch.no_grad():
            model(torch.arange(3, 3 + count)[None], use_cache=True, **named_cache(model, cache))
        assert sizes.cache_bytes(count) == _bytes(cache)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_memory_shows_the_same(name):
    model = tiny_family(name, torch.float32)
    config = tiny_config(name)
    assert counted(Sizes.of(config), config).held == cache_bytes_of(backbone(model), model.config)


def test_the_formula_remains_where_a_model_does_not_run_without_memory():
    config = tiny_config(NOT_WITHOUT_MEMORY)
    sizes = counted(Sizes.of(config), config)
    assert sizes.held is None
    assert sizes.cache_bytes(10) > 0


def test_latents_and_states_counted_by_hand():
    config = tiny_config("qwen3_5_text")  # 3 layers of 2 + 2 key and 4 value heads of 8, 2 of 2 kv heads of 8
    sizes = counted(Sizes.of(config), config)
    states = 3 * (4 * (2 * 2 * 8 + 4 * 8) + 4 * 8 * 8) * 4
    assert (sizes.states, sizes.full, sizes.attending) == (states, 2, 2)
    assert sizes.cache_bytes(100) == states + 100 * 2 * 2 * 2 * 8 * 4
    config = tiny_config("deepseek_v3")  # 3 layers, a latent of 16 and a rotary part of 4; heads of 8 + 4 and of 8
    sizes = counted(Sizes.of(config), config)
    assert sizes.cache_bytes(100) == 100 * 3 * (16 + 4) * 4
    assert (sizes.kv_heads, sizes.head_size, sizes.expanded) == (1, 12, 4 * (8 + 4 + 8 + 8))


def test_a_quarter_of_the_layers_of_qwen_3_6_holds_a_quarter_of_the_entries():
    config = AutoConfig.for_model("qwen3_5_moe")  # as released: 40 layers, one of four with attention
    sizes = counted(Sizes.of(config, itemsize=2), config)
    every_layer = 2 * 40 * 2 * 256 * 2 * 100_000
    assert sizes.cache_bytes(100_000) - sizes.states == every_layer // 4
    assert 0 < sizes.states < every_layer // 50


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"], ""),
        (["LinearAttentionLayer"] * 30 + ["DynamicLayer"] * 10, "10 of 40 layers hold entries; {} the other 30"),
        (["LinearAttentionLayer", "DummyLayer", "DynamicLayer"], "1 of 3 layers hold entries; {} 1 layer"),
        (["LinearAttentionAndFullAttentionLayer"] * 3, "3 of 3 layers hold entries; {} all 3 layers"),
        (
            ["LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer", "DynamicLayer"],
            "2 of 3 layers hold entries; {} 2 layers",
        ),
    ],
)
def test_where_else_a_token_may_live_on(kinds, words):
    assert holding(kinds) == words.format("what is removed may live on in the states of")

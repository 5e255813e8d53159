"""Families beyond plain keys and values, in the ways in which people use them; and that the judge sees what it must."""

from __future__ import annotations

import copy

import brute_force
import pytest
import torch
from families import tiny_config, tiny_family
from family_table import M, N
from family_ways import WAYS
from float64 import Float64
from released_layouts import LAYOUTS
from transformers.cache_utils import DynamicCache

from forward_influence.errors import UsageError
from forward_influence.instrument.compat import named_cache

TOLERANCE = 1e-10

#: One for each kind of layer, quick enough for every day; `make families` runs all.
EVERY_DAY = (
    "qwen3_5",
    "nemotron_h",
    "bamba",
    "falcon_h1",
    "zamba2",
    "jamba",
    "lfm2",
    "deepseek_v3",
    "glm_moe_dsa:shared indexers",
    "gemma3n_text",
    "gemma4_text",
)
#: A token that comes alone is treated otherwise by the model itself: what it says then is no function of the text.
ALONE = tuple(name for name in LAYOUTS if name.endswith("limited time steps"))
#: Its cache is of a kind of its own.
REFUSED = ("minimax_m3_vl_text",)
WORKING = tuple(name for name in LAYOUTS if name not in ALONE + REFUSED)
#: Layers that keep a state of what they read.
STATES = ("conv_states", "recurrent_states")


def marked(names: tuple[str, ...]) -> list:
    return [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", marked(WORKING))
def test_equal_to_full_passes(name, way):
    difference, effect = WAYS[way](name)
    assert effect > 1e-6, "the reference itself must see an effect"
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", ALONE)
def test_a_direct_effect_is_refused_where_a_token_alone_is_treated_otherwise(name):
    with pytest.raises(UsageError, match="reads alone"):
        WAYS["direct"](name)


def _stateful(name: str) -> bool:
    layers = DynamicCache(config=tiny_config(name).get_text_config(decoder=True)).layers
    return any(hasattr(layer, STATES[0]) for layer in layers)


def _continued(model, cache: DynamicCache, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the continuation token by token, numbered."""
    parts = []
    for i, token in enumerate(tokens):
        named = {"position_ids": torch.tensor([[N + i]]), "use_cache": True, **named_cache(model, cache)}
        parts.append(model(token[None, None], **named).logits[0])
    return torch.cat(parts)


@pytest.mark.parametrize("name", marked(tuple(name for name in WORKING if _stateful(name))))
def test_tiny_states_remember_what_they_read(name):
    """A state that was lost, or shared by two runs, must show: trained ones forget slowly, random ones at once."""
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    with Float64(), torch.no_grad():
        model = tiny_family(name)
        wanted = brute_force.logits_of_full_pass(model, tokens).logits[0, N:]
        context = DynamicCache(config=model.config.get_text_config(decoder=True))
        model(tokens[None, :N], use_cache=True, **named_cache(model, context))
        lost, shared = copy.deepcopy(context), copy.deepcopy(context)
        for whole, without, beside in zip(context.layers, lost.layers, shared.layers, strict=True):
            for kind in STATES:
                for state in (getattr(without, kind, None) or {}).values():
                    if state is not None:
                        state.zero_()
                if hasattr(whole, kind):
                    setattr(beside, kind, getattr(whole, kind))
        _continued(model, shared, tokens[N:])
        for cache in (lost, context):
            found = _continued(model, cache, tokens[N:])
            assert float(brute_force.kl_by_definition(wanted, found).max()) > 0.05


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text"])
def test_readers_of_another_layers_keys_lose_what_it_loses(name, monkeypatch):
    model = tiny_family(name)
    tokens = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))
    config = model.config.get_text_config(decoder=True)
    sources = brute_force.readers(config)
    full = {i for i, kind in enumerate(config.layer_types) if kind == "full_attention"}
    assert {sources[i] for i in sources.keys() & full} <= full
    [source] = {sources[i] for i in sources.keys() & full}
    gone = torch.rand(2, N, generator=torch.Generator().manual_seed(1)) < 0.4
    with Float64():
        found = brute_force.logits_of_full_pass(model, tokens, {source: gone}, after=N).logits[0, N:]
        monkeypatch.setattr(brute_force, "readers", lambda config: {})
        alone = brute_force.logits_of_full_pass(model, tokens, {source: gone}, after=N).logits[0, N:]
    assert float((found - alone).abs().max()) > 1e-3

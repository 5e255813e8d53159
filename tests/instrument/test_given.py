"""Models as people have them: compiled by torch or wrapped: measured as what they are, or refused in words."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model
from torch import nn

import forward_influence as fi
from forward_influence.errors import UsageError
from forward_influence.influence.measure import forward_influence
from forward_influence.models.loading import wrap_model
from forward_influence.models.resolving import resolve_spec
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record

N, M = 40, 17
TOKENS = torch.randint(3, 97, (N + M,), generator=torch.Generator().manual_seed(5))


def measured(given):
    """KL (m,) of one ragged selection, and the entropy that rules read."""
    model = wrap_model(given)
    trace = record(model, TOKENS[:N], Needs.merge({"entropy:0"}), span=N + M, chunk=13)
    [found] = forward_influence(model, trace, TOKENS[N:], Selection(mask_of(trace.shape), trace.layers), chunk=9)
    return found.kl, trace.entropy_of(0)


def mask_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.4


def compressed(given):
    """What is generated while the cache compresses itself, what it held, and logits of a call of the model itself."""
    with torch.no_grad(), fi.compress(given, "h2o", budget=16, every=4) as cache:
        text = given.generate(TOKENS[:N][None], past_key_values=cache, max_new_tokens=12, do_sample=False)
    with torch.no_grad(), fi.compress(given, "h2o", budget=16) as other:
        logits = [given(part[None], past_key_values=other).logits[0] for part in TOKENS[: N + 3].split([N, 1, 1, 1])]
    return text, cache.stats.held, torch.cat(logits), other.stats.held


def whole(raw):
    return torch.compile(raw, backend="eager")


def in_place(raw):
    raw.compile(backend="eager")
    return raw


def by_layers(raw):
    for layer in raw.model.layers:
        layer.compile(backend="eager")
    return raw


def its_forward(raw):
    raw.forward = torch.compile(raw.forward, backend="eager")
    return raw


def parallel(raw):
    return nn.DataParallel(raw)


@pytest.mark.parametrize("way", [whole, in_place, by_layers, its_forward, parallel])
def test_wrapped_models_are_measured_and_compressed_as_the_plain_one(way):
    plain = copy.deepcopy(tiny_model("llama"))
    given = way(copy.deepcopy(plain))
    with torch.no_grad():
        given(TOKENS[None])  # what is compiled is there already, with no hooks in it
        given(TOKENS[None])
    for one, other in zip(measured(given), measured(plain), strict=True):
        assert torch.equal(one, other)
    if way is not parallel:  # which has no generate
        for one, other in zip(compressed(given), compressed(plain), strict=True):
            assert torch.equal(one, other)
    assert wrap_model(given).spec == "LlamaForCausalLM"


def test_after_the_block_compiled_models_run_compiled_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    given = torch.compile(copy.deepcopy(tiny_model("llama")), backend=backend)
    measured(given)
    assert not compiled
    with torch.no_grad():
        given(TOKENS[None])
    assert compiled


@pytest.mark.parametrize("given", ["smollm2-135m", nn.Linear(2, 2), None])
def test_what_is_no_model_is_refused_in_words(given):
    with pytest.raises(UsageError, match="is no transformers model; give a PreTrainedModel"):
        wrap_model(given)
    with pytest.raises(UsageError, match="is no transformers model"), fi.compress(given):
        pass


def test_the_folder_of_an_adapter_is_named_as_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a PEFT adapter, not a model"):
        resolve_spec(str(tmp_path))

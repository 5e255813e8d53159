"""The rotary embedding at other positions: as the model's own, without its state and without copying the model."""

from __future__ import annotations

import copy

import tiny_data
import torch

from forward_influence.compression import compress
from forward_influence.instrument.rotary import Rotation


def test_what_is_copied_is_the_rotary_module_alone(monkeypatch):
    """Its hooks lead to the whole model, which was copied once per layer and compression."""
    model = tiny_data.model()
    rotation = Rotation(model.model)
    rotation.attach()
    tokens = torch.arange(3, 20)
    rotation.verify(model.model, tokens[:1], (0, 1))
    copied = []
    monkeypatch.setattr(torch.nn.Linear, "__deepcopy__", lambda self, memo: copied.append(self), raising=False)
    like = torch.zeros(1, dtype=model.dtype)
    turn = rotation.at(0, torch.arange(17), like)
    assert not copied
    hooks = model.model.model.rotary_emb._forward_hooks
    assert len(hooks) == 1  # the model's own are where they were
    rotation.detach()
    cos, sin = model.model.model.rotary_emb(like, torch.arange(17)[None])
    pairs = turn.cos.shape[-1]
    torch.testing.assert_close((turn.cos, turn.sin), (cos[0, :, :pairs], sin[0, :, :pairs]))
    copy.deepcopy(model.model.model.layers[0].mlp)
    assert copied  # the trap works


def test_expected_attention_compresses_without_a_copy_of_the_model(monkeypatch):
    model = tiny_data.model()
    copied = []
    monkeypatch.setattr(torch.nn.Linear, "__deepcopy__", lambda self, memo: copied.append(self), raising=False)
    with torch.no_grad(), compress(model, "expected-attention", budget=0.5) as cache:
        model.model(torch.arange(3, 90)[None], past_key_values=cache)
        assert int(cache.stats.held.max()) < 87
    assert not copied

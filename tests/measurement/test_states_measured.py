"""Runs on models with states: what is refused before anything is read, and what the manifest says was found."""

from __future__ import annotations

import pytest
import tiny_data
import torch
from families import tiny_family

from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.measurement.screening import screen_document
from forward_influence.models.loading import wrap_model

N, M = 31, 9


@pytest.mark.parametrize("name", ["qwen3_next", "glm_moe_dsa", "gemma3n_text"])
def test_rules_that_look_ahead_are_refused_before_anything_is_read(name, tmp_path):
    model = wrap_model(tiny_family(name, torch.float32))
    documents = tiny_data.documents(1, N + M)
    sizes = {"context": N, "continuation": M, "protect_last": 4, "budgets": ("0.4",)}
    with pytest.raises(UsageError, match="no gradients go"):
        measure(model, documents, Request(selectors=("oracle:zone=far",), **sizes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="no gradients go"):
        screen_document(model, documents[0], Request(selectors=("knorm",), **sizes))


def test_a_manifest_says_what_was_found(tmp_path):
    model = wrap_model(tiny_family("jamba", torch.float32))
    request = Request(selectors=("knorm",), context=N, continuation=M, protect_last=4, budgets=("0.4",))
    found = measure(model, tiny_data.documents(1, N + M), request, tmp_path / "run").manifest["model"]
    assert found["cache_layers"] == list(model.anatomy.kinds) and "LinearAttentionLayer" in found["cache_layers"]
    assert found["run_in"] == "one token at a time"
    assert found["windows"] == [0, None, 0, None]

"""A model that one device cannot hold: accelerate brings weights in from disk, and results are the same bit for bit.

Several devices are not at hand here; what moves between them (selections, signals, hidden states, targets) is moved by
name of device, and weights on disk go through the same hooks.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_data
import torch
from tiny import tiny_model
from tiny_files import VOCABULARY, save_tiny

from forward_influence.cli.app import main
from forward_influence.errors import UsageError
from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request
from forward_influence.models.loading import load_model

RULES = ("attention:window=8", "h2o", "infokv:window=8", "knorm", "expected-attention", "surprisal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model("llama", torch.float32, vocab_size=VOCABULARY, tie_word_embeddings=False)
    return save_tiny(tmp_path_factory.mktemp("model"), model)


def test_layers_on_disk_give_the_same_results_bit_for_bit(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = load_model(str(folder), device="cpu")
    offloaded = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    spread = load_model(str(folder), device_map=offloaded)
    assert next(spread.model.model.layers[1].parameters()).device.type == "meta"
    assert spread.fingerprint == whole.fingerprint
    assert spread.device.type == "cpu"
    request = Request(selectors=RULES, context=60, continuation=40, protect_last=8, effect="both", mode="drop")
    documents = tiny_data.documents(1, 100)
    one, two = (measure(m, documents, request, tmp_path / n) for m, n in ((whole, "whole"), (spread, "spread")))
    for a, b in zip(one.rows(), two.rows(), strict=True):
        for name in ("kl", "nll_delta", "top1_changed"):
            assert a[name] is None or np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")


def test_auto_and_what_it_cannot_do(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_model(str(folder), device_map="auto").fingerprint == load_model(str(folder), device="cpu").fingerprint
    with pytest.raises(UsageError, match="leave `device`"):
        load_model(str(folder), device="cpu", device_map="auto")
    on_disk = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    with pytest.raises(UsageError, match="would lie on disk"):
        load_model(str(folder), device_map={**on_disk, "model.rotary_emb": "cpu"})
    (tmp_path / "text.txt").write_text(" ".join(f"word{j * 7 % 97}" for j in range(400)))
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8", "--selector", "recent"]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "measure",
                "--model",
                str(folder),
                "--documents",
                str(tmp_path / "text.txt"),
                "--device-map",
                "auto",
                *sizes,
            ]
        )
    assert stopped.value.code == 0, capsys.readouterr().err

"""Specs: what they mean, what is refused before any weights are read, and that what is loaded is what was saved."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from tiny_files import save_tiny, tiny_llama
from transformers import AutoConfig

from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.models import devices, hub
from forward_influence.models.at_hand import describe_models
from forward_influence.models.fingerprint import fingerprint
from forward_influence.models.loading import load_model
from forward_influence.models.resolving import resolve_spec
from forward_influence.utils.paths import CACHE_VARIABLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def config_only(folder: Path, family: str, **settings: Any) -> Path:
    """A folder that holds a configuration and no weights."""
    AutoConfig.for_model(family, **settings).save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_as_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(str(folder), device="cpu")
    saved = tiny_llama().state_dict()
    assert loaded.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(saved[name], value) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.device, loaded.dtype, loaded.spec) == (torch.device("cpu"), torch.float32, str(folder))
    assert (loaded.anatomy.layers, loaded.anatomy.kv_heads, loaded.anatomy.positions) == (3, 2, 512)
    assert loaded.provenance == {"source": "folder tiny", "note": "as stored"}
    assert loaded.tokenizer.decode(loaded.tokenizer("the  end\n\n12").input_ids) == "the  end\n\n12"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(FrozenInstanceError):
        loaded.spec = "other"  # type: ignore[misc]


def test_resolving_reads_no_weights(tmp_path: Path) -> None:
    resolved = resolve_spec(str(config_only(tmp_path, "llama", max_position_embeddings=77)))
    assert (resolved.kind, resolved.positions, resolved.config.model_type) == ("folder", 77, "llama")


def test_the_fingerprint_is_of_the_numbers(folder: Path) -> None:
    first = load_model(str(folder), device="cpu")
    assert first.fingerprint == load_model(str(folder), device="cpu").fingerprint
    assert first.fingerprint != load_model(str(folder), device="cpu", dtype="bfloat16").fingerprint
    before = fingerprint(first.model)
    weight = first.model.model.layers[2].mlp.down_proj.weight
    weight.view(-1)[5] = torch.nextafter(weight.view(-1)[5], torch.tensor(9.0))
    assert fingerprint(first.model) != before


def test_a_gguf_file_computes_what_its_weights_compute(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = tiny_llama()
    path = gguf_files.write(tmp_path / "tiny.gguf", "llama", original)
    loaded = load_model(str(path), device="cpu")
    tokens = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(tokens).logits, original(tokens).logits, rtol=0, atol=1e-5)
    assert loaded.provenance == {"source": "tiny.gguf", "note": "F32 GGUF, dequantised"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("t5", {}, "encoder-decoder"),
        ("bart", {}, "encoder-decoder"),
        ("bert", {}, "is an encoder"),
        ("roberta", {}, "is an encoder"),
        ("vit", {}, "no causal language model"),
    ],
)
def test_other_kinds_of_model_are_refused_from_their_configuration(
    tmp_path: Path, family: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(str(config_only(tmp_path, family, **settings)))


def test_gpt_neox_is_no_encoder_whatever_its_configuration_says(tmp_path: Path) -> None:
    assert resolve_spec(str(config_only(tmp_path, "gpt_neox"))).config.is_decoder is False


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_llama().model)
    with pytest.raises(UsageError, match=r"lacks 1 of the weights of a LlamaForCausalLM \(lm_head.weight\)"):
        load_model(str(tmp_path), device="cpu")


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(ForwardInfluenceError, match="safetensors"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_truncated_weights_are_one_line(tmp_path: Path, size: int) -> None:
    weights = save_tiny(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ForwardInfluenceError, match=r"weights of .* cannot be loaded") as caught:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model_type": "no such type"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"configuration of .* cannot be used") as caught:
        resolve_spec(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "names no model; the default is smollm2-135m"),
        ("\x1b[31m", r"'\\x1b\[31m' names no model"),
        ("smollm2-135m", "run `forward-influence models pull smollm2-135m`"),
        ("gemma3-270m", "run `forward-influence models pull gemma3-270m`"),
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./nowhere", "no folder './nowhere'"),
        ("a/b/c", "no folder 'a/b/c'"),
        ("../../nowhere", "no folder"),
        ("nowhere.gguf", "no file 'nowhere.gguf'"),
        ("org/model", "cannot reach the Hugging Face hub.*take `model` smollm2-135m"),
    ],
)
def test_what_cannot_be_found_says_what_to_type(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        resolve_spec(spec)
    assert "\n" not in str(caught.value)


def test_folders_and_files_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve_spec(str(tmp_path))
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not GGUF")
    with pytest.raises(UsageError, match="no GGUF file"):
        resolve_spec(str(fake))
    fake.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(UsageError, match="no whole GGUF file"):
        resolve_spec(str(fake))


def test_a_revision_belongs_to_the_hub(folder: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        resolve_spec(str(folder), revision="main")


def test_a_hub_model_is_pinned_to_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: list[dict[str, Any]] = []

    def config(location: str, **arguments: Any) -> Any:
        asked.append(arguments)
        return AutoConfig.for_model("llama")

    monkeypatch.setattr(hub, "find", lambda spec, revision: hub.Found(commit, online=True))
    monkeypatch.setattr(AutoConfig, "from_pretrained", config)
    resolved = resolve_spec("org/model", revision="v1")
    assert asked == [{"revision": commit, "local_files_only": False, "trust_remote_code": False}]
    assert resolved.provenance["source"] == f"hub org/model@{commit}"
    assert resolved.loading["revision"] == commit


def test_a_hub_model_in_the_hub_cache_loads_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--tiny"
    save_tiny(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_model("org/tiny", device="cpu")
    assert loaded.provenance["source"] == f"hub org/tiny@{commit}"
    assert torch.equal(loaded.model.lm_head.weight, tiny_llama().lm_head.weight)


@pytest.mark.parametrize(
    ("device", "words"),
    [("cpuu", "did you mean 'cpu'"), ("cuda:99", "no cuda:99"), ("meta", "no meta"), ("", "no device")],
)
def test_devices_that_are_not_there(folder: Path, device: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_model(str(folder), device=device)


def test_dtypes(folder: Path) -> None:
    assert devices.choose_dtype("auto") is torch.float32
    assert devices.choose_dtype(torch.float64) is torch.float64
    assert load_model(str(folder), device="cpu", dtype="float64").model.lm_head.weight.dtype is torch.float64
    with pytest.raises(UsageError, match="did you mean 'float16'"):
        load_model(str(folder), dtype="flaot16")
    with pytest.raises(UsageError, match="no dtype"):
        load_model(str(folder), dtype="int8")


def test_models_at_hand_lists_the_catalogue() -> None:
    found = {model.name: model for model in describe_models()}
    assert found["smollm2-135m"].state == "not pulled"
    assert found["smollm2-135m"].default
    assert "ai.google.dev/gemma/terms" in found["gemma3-270m"].terms
    assert json.dumps(found["gemma3-270m"].download) == "238175024"


def test_logging_is_put_back_after_loading(folder: Path) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_model(str(folder), device="cpu")
    with pytest.raises(ForwardInfluenceError):
        resolve_spec("org/model")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before

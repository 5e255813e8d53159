"""GGUF files compute what their header says: logits in float64 equal the model's that they were written from.

And nothing in a header is passed over: every key of the format, changed, changes the configuration or is refused.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import ABSENT, write
from tiny_files import VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forward_influence.errors import UsageError
from forward_influence.models.gguf import files as gguf_models
from forward_influence.models.gguf.architectures import ARCHITECTURES
from forward_influence.models.gguf.config import configuration
from forward_influence.models.gguf.header import Header, read_header
from forward_influence.models.loading import load_model
from forward_influence.models.resolving import resolve_spec

COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and the keys that its file has beside the sizes."""

    arch: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    length: int = 100


def rope(kind: str = "default", theta: float = 10000.0, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **others}}


def llama3_factors(factor: float, low: float, high: float, original: int, dim: int, theta: float) -> torch.Tensor:
    """As llama.cpp's converter writes them, a frequency at a time."""
    found = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * theta ** (i / dim)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found)


HEADS16 = {"attention.key_length": 16, "attention.value_length": 16}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {"long_factor": [1.5, 2.0, 4.0, 8.0], "short_factor": [1.0, 1.25, 1.5, 2.0]}
LONG_TENSORS = {
    "rope_factors_long.weight": torch.tensor(LONG["long_factor"]),
    "rope_factors_short.weight": torch.tensor(LONG["short_factor"]),
}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24}
GEMMA = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
LAYERED = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, Case] = {
    "llama": Case("llama", "llama", rope(), {"rope.dimension_count": 8, "rope.freq_base": 10000.0}),
    "llama, absent keys": Case("llama", "llama", {**rope(), "num_key_value_heads": 4}, {
        "attention.head_count_kv": ABSENT}),
    "llama, tied": Case("llama", "llama", {"tie_word_embeddings": True}),
    "llama, base and eps": Case("llama", "llama", {**rope(theta=1000.0), "rms_norm_eps": 1e-3}, {
        "rope.freq_base": 1000.0}),
    "llama, heads of their own size": Case("llama", "llama", {"head_dim": 16}, {**HEADS16, "rope.dimension_count": 16}),
    "llama, biases": Case("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": Case("llama", "llama", rope("linear", factor=4.0), {
        "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama, linear without type": Case("llama", "llama", rope("linear", factor=4.0), {"rope.scaling.factor": 4.0}),
    "llama, old linear": Case("llama", "llama", rope("linear", factor=4.0), {"rope.scale_linear": 4.0}),
    "llama, scaling of type none": Case("llama", "llama", rope(), {
        "rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "llama, yarn": Case("llama", "llama", rope("yarn", factor=4.0, original_max_position_embeddings=16), {
        **YARN, "rope.scaling.finetuned": True}),
    "llama, yarn's betas": Case(
        "llama", "llama",
        rope("yarn", theta=100.0, factor=4.0, original_max_position_embeddings=128, beta_fast=2.0, beta_slow=0.5),
        {**YARN, "rope.scaling.original_context_length": 128, "rope.freq_base": 100.0,
         "rope.scaling.yarn_beta_fast": 2.0, "rope.scaling.yarn_beta_slow": 0.5}),
    "llama, yarn's magnitude": Case(
        "llama", "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=16,
             attention_factor=1.5 * (0.1 * float(np.log(4.0)) + 1)),
        {**YARN, "rope.scaling.attn_factor": 1.5}),
    "llama, llama3": Case(
        "llama", "llama", {**rope("llama3", theta=500000.0, **LLAMA3), "head_dim": 64},
        {"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64,
         "rope.freq_base": 500000.0},
        {"rope_freqs.weight": llama3_factors(8.0, 1.0, 4.0, 8192, 64, 500000.0)}, 500),
    "llama, longrope": Case(
        "llama", "llama", rope("longrope", original_max_position_embeddings=64, attention_factor=1.3, **LONG),
        {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.3},
        LONG_TENSORS),
    "qwen2": Case("qwen2", "qwen2", rope(theta=5000.0), {"rope.freq_base": 5000.0}),
    "qwen2, yarn": Case("qwen2", "qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=16), YARN),
    "qwen2moe": Case(
        "qwen2moe", "qwen2_moe",
        {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2,
         "decoder_sparse_step": 1, "norm_topk_prob": False},
        {**EXPERTS, "expert_shared_feed_forward_length": 40}),
    "qwen3": Case("qwen3", "qwen3", {"head_dim": 16, **rope(theta=1000.0)}, {**HEADS16, "rope.freq_base": 1000.0}),
    "qwen3moe": Case(
        "qwen3moe", "qwen3_moe",
        {"head_dim": 16, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2,
         "decoder_sparse_step": 1, "norm_topk_prob": True},
        {**HEADS16, **EXPERTS}),
    "phi3": Case("phi3", "phi3", {"sliding_window": None}, {"attention.sliding_window": 0, "rope.dimension_count": 8}),
    "phi3, window": Case("phi3", "phi3", {"sliding_window": 20}, {"attention.sliding_window": 20}),
    "phi3, partial": Case("phi3", "phi3", {**rope(partial_rotary_factor=0.5), "sliding_window": None}, {
        "attention.sliding_window": 0, "rope.dimension_count": 4}),
    **{f"phi3, longrope {length}": Case(
        "phi3", "phi3",
        {**rope("longrope", original_max_position_embeddings=64, **LONG), "original_max_position_embeddings": 64,
         "sliding_window": None},
        {"attention.sliding_window": 0, "rope.scaling.original_context_length": 64,
         "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(512 / 64) / np.log(64)))},
        LONG_TENSORS, length) for length in (50, 200)},
    "gemma2": Case(
        "gemma2", "gemma2", {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
        {**HEADS16, "attention.sliding_window": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
    "gemma2, absent keys": Case(
        "gemma2", "gemma2", {**GEMMA, "sliding_window": 4096, "max_position_embeddings": 8192}, HEADS16),
    "gemma3": Case(
        "gemma3", "gemma3_text", {**GEMMA, "num_hidden_layers": 7},
        {**HEADS16, "attention.sliding_window": 16, "rope.freq_base": 1000000.0}),
    "gemma3, scaled": Case(
        "gemma3", "gemma3_text",
        {**GEMMA, "layer_types": LAYERED, "final_logit_softcapping": 2.0, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}},
        {**HEADS16, "attention.sliding_window": 16, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 500.0,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "final_logit_softcapping": 2.0,
         "attention.sliding_window_pattern": [True, False, True]}),
    "gemma3, no window": Case(
        "gemma3", "gemma3_text", {**GEMMA, "layer_types": ["full_attention"] * 3},
        {**HEADS16, "rope.freq_base": 1000000.0}),
    "gpt2": Case("gpt2", "gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 512, "n_inner": 48,
                                  "tie_word_embeddings": True}, {
                                      "feed_forward_length": 48, "attention.head_count_kv": 4}),
    "starcoder2": Case(
        "starcoder2", "starcoder2", {**rope(theta=999999.0), "sliding_window": None}, {"rope.freq_base": 999999.0}),
    "starcoder2, no biases": Case("starcoder2", "starcoder2", {"use_bias": False, "sliding_window": None}),
    "stablelm": Case("stablelm", "stablelm", rope(theta=1000.0, partial_rotary_factor=0.5), {
        "rope.dimension_count": 4, "rope.freq_base": 1000.0, "use_parallel_residual": True}),
    "stablelm, parallel": Case(
        "stablelm", "stablelm",
        {**rope(partial_rotary_factor=0.25), "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
        {"rope.dimension_count": 2, "use_parallel_residual": True}),
    "nemotron": Case("nemotron", "nemotron", {**rope(theta=1000.0, partial_rotary_factor=0.5), "norm_eps": 1e-3}, {
        "rope.dimension_count": 4, "rope.freq_base": 1000.0, "attention.layer_norm_rms_epsilon": 1e-3}),
    "gpt-oss": Case(
        "gpt-oss", "gpt_oss",
        {**rope("yarn", theta=1000.0, factor=4.0, original_max_position_embeddings=16, truncate=False), "head_dim": 16,
         "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "layer_types": LAYERED},
        {**HEADS16, **YARN, "rope.freq_base": 1000.0, "expert_count": 4, "expert_used_count": 2,
         "expert_feed_forward_length": 48, "attention.sliding_window": 16}),
}  # fmt: skip


def made(case: Case) -> PreTrainedModel:
    """A random model with weights large enough that attention is far from uniform."""
    config = AutoConfig.for_model(case.family, **{**COMMON, **case.settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.25 if parameter.dim() > 1 else parameter + noise * 0.1)
    return _plain(model)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernel has no float64
    return model.double().eval()


def logits(model: PreTrainedModel, length: int) -> torch.Tensor:
    tokens = torch.randint(3, 300, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.log_softmax(-1)


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_its_header_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = made(case)
    path = write(tmp_path / "model.gguf", case.arch, model, case.keys, case.extra)
    loaded = _plain(gguf_models.load_weights(path, torch.float64))
    torch.testing.assert_close(logits(loaded, case.length), logits(model, case.length), rtol=0, atol=2e-5)
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.keys or case.extra])
def test_models_of_these_tests_show_what_a_dropped_key_does(name: str, tmp_path: Path) -> None:
    """Scaling, windows, caps and bases have an effect in them that is far above the tolerance."""
    case = CASES[name]
    telling = re.compile(r"scal|window$|softcap|freq_base|layer_norm|used_count")
    dropped = [key for key in case.keys if telling.search(key) and case.keys[key] not in (0, "none", True)]
    model = made(case)
    whole = logits(model, case.length)
    for left_out in dropped:
        try:
            path = write(tmp_path / "model.gguf", case.arch, model, {**case.keys, left_out: ABSENT}, case.extra)
            found = logits(_plain(gguf_models.load_weights(path, torch.float64)), case.length)
        except UsageError:
            continue
        same = (found - whole).abs().max() < 1e-3
        assert not same or _is_default(case, left_out), left_out


def _is_default(case: Case, key: str) -> bool:
    """Whether a key says what its absence means."""
    return (key, case.keys[key]) in {
        ("rope.freq_base", 10000.0),
        ("attention.layer_norm_rms_epsilon", 1e-3),  # Nemotron's, which is written under two names
        ("rope.scaling.type", "linear"),
        ("rope.scaling.type", "longrope"),  # the tensors say it
        ("rope.scaling.factor", 4.0 if case.keys.get("rope.scaling.type") == "none" else None),
        ("rope.scaling.original_context_length", 64 if case.length <= 64 else None),
    }


def test_transformers_own_config_reads_back_the_same(tmp_path: Path) -> None:
    """The converted folder: its configuration, weights and tokenizer are those of the file."""
    case = CASES["llama, llama3"]
    model = made(case)
    path = write(tmp_path / "model.gguf", case.arch, model, case.keys, case.extra)
    gguf_models.convert(path, tmp_path / "converted")
    again = load_model(str(tmp_path / "converted"), device="cpu", dtype="float64")
    assert again.model.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(logits(again.model, 500), logits(model, 500), rtol=0, atol=1e-12)
    direct = load_model(str(path), device="cpu", dtype="float64")
    torch.testing.assert_close(logits(direct.model, 500), logits(model, 500), rtol=0, atol=1e-12)


REFUSED = [
    ("llama", {"expert_count": 8}, "says llama.expert_count = 8"),
    ("llama", {"attention.sliding_window": 16}, "attention.sliding_window = 16, where the layers .* see everything"),
    ("llama", {"attention.scale": 0.5}, "attention.scale = 0.5, which is not understood"),
    ("llama", {"attention.causal": False}, "attention.causal = False"),
    ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
    ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"logit_scale": 0.5}, "logit_scale"),
    ("llama", {"rope.dimension_count": 4}, "rope.dimension_count = 4, where heads of 8 are rotated whole"),
    ("llama", {"attention.key_length": 16}, "key_length = 16, where values have 8"),
    ("llama", {"attention.head_count_kv": [2, 2, 1]}, r"head_count_kv = \[2, 2, 1\], which differs between layers"),
    ("llama", {"feed_forward_length": [48, 48, 40]}, "feed_forward_length"),
    ("llama", {"vocab_size": 300}, "vocab_size = 300"),
    ("llama", {"attention.layer_norm_rms_epsilon": ABSENT}, "has no llama.attention.layer_norm_rms_epsilon"),
    ("llama", {"rope.scaling.type": "ntk"}, "rope.scaling.type = 'ntk'"),
    ("llama", {"rope.scaling.attn_factor": 1.2}, "attn_factor = 1.2, without the scaling"),
    ("llama", {"rope.scaling.alpha": 1000.0}, "rope.scaling.alpha"),
    ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type = 'longrope', without the tensor"),
    ("llama", {**YARN, "rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor = 0.5"),
    ("llama", {**YARN, "rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    ("llama", {**YARN, "rope.scaling.yarn_attn_factor": 2.0}, "yarn_attn_factor = 2.0, where a factor of 4 gives"),
    ("llama", {"some.new.thing": 3}, "llama.some.new.thing = 3, which is not understood here"),
    ("llama", {"custom.key": 3}, "custom.key = 3, which is not understood here"),
    ("llama", {"general.type": "adapter"}, "general.type = 'adapter'"),
    ("llama", {"split.count": 3}, "one of 3 parts: join them"),
    ("llama", {"tokenizer.ggml.eos_token_id": 999}, "eos_token_id = 999, where there are 320 tokens"),
    ("phi3", {"attention.sliding_window": ABSENT}, "has no phi3.attention.sliding_window"),
    ("phi3", {"attention.sliding_window": 0, **YARN}, "rope.scaling.type = 'yarn'"),
    ("qwen3moe", {**EXPERTS, "expert_weights_scale": 2.5}, "expert_weights_scale = 2.5"),
    ("qwen3moe", {**EXPERTS, "expert_gating_func": 2}, "expert_gating_func = 2"),
    ("qwen3moe", {**EXPERTS, "expert_weights_norm": False}, "expert_weights_norm"),
    ("gemma3", {**HEADS16, "attention.key_length_swa": 8, "attention.sliding_window": 8}, "key_length_swa = 8"),
    ("gemma2", {**HEADS16, "attention.sliding_window_pattern": [True]}, "where the model has 3 layers"),
    ("nemotron", {"attention.layer_norm_rms_epsilon": 1e-5}, "layer_norm_rms_epsilon = 1e-05"),
]


@pytest.mark.parametrize(("arch", "keys", "words"), REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(
    arch: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    case = CASES[arch]
    path = write(tmp_path / "model.gguf", arch, made(case), {**case.keys, **keys}, case.extra)
    with pytest.raises(UsageError, match=words) as refused:
        resolve_spec(str(path))
    assert "\n" not in str(refused.value) and str(refused.value).count("cannot be used") == 0


def test_other_factors_than_llama_3_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "llama", made(CASES["llama"]), {}, {
        "rope_freqs.weight": torch.tensor([1.0, 1.0, 2.0, 3.0])})  # fmt: skip
    with pytest.raises(UsageError, match=r"rope_freqs.weight = \[1.0, 1.0, 2.0, 3.0\], factors which are not"):
        resolve_spec(str(path))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        UsageError, match=r"architecture 'mamba'; GGUF files of llama, qwen2, .* take the model as safe"
    ):
        resolve_spec(str(path))


def test_every_tensor_has_a_place_and_every_weight_is_there(tmp_path: Path) -> None:
    model = made(CASES["llama"])
    path = write(tmp_path / "more.gguf", "llama", model, {}, {"blk.0.attn_sinks.weight": torch.zeros(4)})
    with pytest.raises(UsageError, match=r"has a tensor blk.0.attn_sinks.weight, for which a llama model has no place"):
        load_model(str(path), device="cpu")
    path = write(tmp_path / "less.gguf", "llama", model, {"block_count": 4})
    with pytest.raises(
        UsageError, match=r"does not hold the weights of a LlamaForCausalLM: missing keys, model.layers.3"
    ):
        load_model(str(path), device="cpu")
    path = write(tmp_path / "other.gguf", "llama", model, {"feed_forward_length": 40})
    with pytest.raises(UsageError, match=r"does not hold the weights of a LlamaForCausalLM: mismatched keys"):
        load_model(str(path), device="cpu")


#: Keys of the format that decide nothing of what is computed here, whatever they say.
HARMLESS = {
    "{arch}.rope.scaling.finetuned",  # how a model came to be
    "{arch}.rope.scaling.original_context_length",  # without a scaling that it belongs to
    "{arch}.rope.scaling.yarn_beta_fast",  # the same
    "{arch}.rope.scaling.yarn_beta_slow",
    "{arch}.rope.scaling.yarn_log_multiplier",
    "stablelm.use_parallel_residual",  # the norm says it
    "imatrix.chunk_count",  # how a file was quantised
    "imatrix.chunk_size",
    "imatrix.datasets",
}


def all_keys(of: type = gguf.Keys) -> Iterator[str]:
    """Every key of the format that belongs to an architecture, or to none of the kinds that are told apart."""
    for name, value in vars(of).items():
        if isinstance(value, type) and name not in ("General", "Tokenizer", "Split"):
            yield from all_keys(value)
        elif isinstance(value, str) and not name.startswith("_"):
            yield value


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_key_of_the_format_is_carried_over_or_refused(arch: str, tmp_path: Path) -> None:
    case = CASES[arch]
    header = read_header(write(tmp_path / "model.gguf", arch, made(case), case.keys, case.extra))
    before = configuration(header).to_dict()
    passed_over = []
    keys = list(all_keys())
    assert len(keys) > 120
    for key, value in itertools.product(keys, (5, 0.25)):
        changed = {**header.values, key.format(arch=arch, dense="dense_2"): value}
        try:
            after = configuration(Header(header.path, changed, header.tensors)).to_dict()
        except UsageError:
            continue
        if after == before:
            passed_over.append(
                key if key.format(arch=arch, dense="") not in HARMLESS else key.format(arch=arch, dense="")
            )
    # What a model has no use for may say what it likes only where it is scaling that is not there.
    assert set(passed_over) <= HARMLESS


def test_damaged_headers_are_refused_in_a_line(tmp_path: Path) -> None:
    case = CASES["llama"]
    whole = write(tmp_path / "model.gguf", case.arch, made(case), case.keys).read_bytes()
    size = min(stored.offset for stored in read_header(tmp_path / "model.gguf").tensors.values())
    rng = random.Random(0)
    refused: list[str] = []
    for number in range(200):
        data = bytearray(whole[:size])
        for _ in range(rng.choice([1, 1, 5, 20])):
            data[rng.randrange(4, size)] = rng.randrange(256)
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data[: rng.randrange(4, size)] if number % 4 == 0 else data)
        for read in (gguf_models.load_config, gguf_models.load_tokenizer):
            try:
                read(path)
            except UsageError as error:
                refused.append(str(error))
                path.unlink(missing_ok=True)
                break
    assert len(refused) > 100
    assert all(".gguf" in line and "\n" not in line for line in refused)

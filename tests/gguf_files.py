"""GGUF files written from models in memory, with the names and layouts that llama.cpp's converter gives them.

Names come from the `gguf` package's own tables and changes of layout from llama.cpp's `conversion/*.py`, so that what
reads the files is tested against something else than itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_files import MERGES, SPECIAL, tokens
from transformers import PretrainedConfig, PreTrainedModel

#: A value of a header: what stands behind `ARCH.` unless it begins with general. or tokenizer.
Keys = Mapping[str, Any]
#: What leaves a key out.
ABSENT = object()

_FOREIGN = ("general.", "tokenizer.", "split.", "quantize.", "custom.")


def byte_level(pre: str = "smollm") -> dict[str, Any]:
    """The keys of the tiny byte-level vocabulary."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens()],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def sizes(config: PretrainedConfig) -> dict[str, Any]:
    """The keys that every architecture has, from a model's configuration."""
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
    }
    if hasattr(config, "rms_norm_eps"):
        return {**found, "attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    names = ("layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon")
    return {**found, "attention.layer_norm_epsilon": next(getattr(config, n) for n in names if hasattr(config, n))}


def write(
    path: Path,
    arch: str,
    model: PreTrainedModel,
    keys: Keys | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    vocabulary: Keys | None = None,
) -> Path:
    """Write a model as a GGUF file in float32.

    Args:
        keys: beside `sizes`, or in place of one of those; `ABSENT` leaves one out.
        extra: more tensors.
        vocabulary: the tokenizer's keys; default: the tiny byte-level vocabulary.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    everything = {**sizes(model.config), **(byte_level() if vocabulary is None else vocabulary), **(keys or {})}
    for key, value in everything.items():
        if value is not ABSENT:
            _put(writer, key if key.startswith(_FOREIGN) else f"{arch}.{key}", value)
    for name, tensor in {**_tensors(model, arch), **(extra or {})}.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        assert isinstance(value, Sequence)
        writer.add_array(key, list(value))


def _tensors(model: PreTrainedModel, arch: str) -> dict[str, torch.Tensor]:
    config = model.config
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name:
            found |= _experts(name, weight, arch)
            continue
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, ".", "weight"
        if "q_layernorm.norms" in stem or "k_layernorm.norms" in stem:  # StableLM's, one per head, stacked
            stem, _, head = stem.rpartition(".norms.")
            to = names.get_name(stem) + ".weight"
            found[to] = torch.cat([found[to], weight[None]]) if head != "0" else weight[None]
            continue
        to = names.get_name(stem)
        assert to is not None, name
        found[to + dot + suffix] = _laid_out(arch, name, weight, config)
    return found


def _laid_out(arch: str, name: str, weight: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    if arch == "llama" and "q_proj" in name:
        return interleaved(weight, config.num_attention_heads)
    if arch == "llama" and "k_proj" in name:
        return interleaved(weight, config.num_key_value_heads)
    if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return weight.double() + 1
    if arch == "nemotron" and name.endswith("norm.weight"):
        return weight.double() + 1
    if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    if name.endswith("shared_expert_gate.weight"):
        return weight[0]
    return weight


def _experts(name: str, weight: torch.Tensor, arch: str) -> dict[str, torch.Tensor]:
    """A layer's experts: gate and up apart; gpt-oss has them interleaved and the other way round."""
    layer, what = name.split(".")[2], name.rpartition(".experts.")[2]
    suffix = "bias" if what.endswith("_bias") else "weight"
    at = f"blk.{layer}.ffn_{{}}_exps.{suffix}".format
    if arch == "gpt-oss" and suffix == "weight":
        weight = weight.transpose(1, 2)
    if what.startswith("down_proj"):
        return {at("down"): weight}
    if arch == "gpt-oss":
        return {at("gate"): weight[:, ::2], at("up"): weight[:, 1::2]}
    half = weight.shape[1] // 2
    return {at("gate"): weight[:, :half], at("up"): weight[:, half:]}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as GGUF orders them: the two halves of each head's rotation alternate."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)

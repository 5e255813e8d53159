"""The tensors of a GGUF file under the names and in the layout of a transformers checkpoint.

Every tensor of the file is used or refused, and every parameter of the model comes from the file. What llama.cpp's
converter changed is changed back: names, the order of Llama's query and key rows, norms stored as one more than they
are, transposed and merged matrices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.models.gguf.config import architecture
from forward_influence.models.gguf.header import Header
from forward_influence.models.gguf.rope import FACTORS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_Named = Iterator[tuple[str, Tensor]]

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = _ATTENTION | _MLP
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2 = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROUTED = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_ENDS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT_OSS = _ATTENTION | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate",
    "ffn_up_exps": "mlp.experts.up",
    "ffn_down_exps": "mlp.experts.down_proj",
    "attn_sinks": "self_attn.sinks",
}

#: The names within a layer, by architecture.
_LAYERS: dict[str, dict[str, str]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2moe": _ATTENTION | _ROUTED | _SHARED,
    "qwen3": _LLAMA | _QK_NORMS,
    "qwen3moe": _ATTENTION | _ROUTED | _QK_NORMS,
    "phi3": _ATTENTION | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2 | _QK_NORMS,
    "gpt2": _GPT2,
    "starcoder2": _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    "stablelm": _LLAMA
    | {"attn_q_norm": "self_attn.q_layernorm.norms.{}", "attn_k_norm": "self_attn.k_layernorm.norms.{}"},
    "nemotron": _LLAMA,
    "gpt-oss": _GPT_OSS,
}


def checkpoint(
    header: Header,
    config: PretrainedConfig,
    dtype: torch.dtype = torch.float32,
    read: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """All tensors of the file, named and laid out as in the model's own checkpoint.

    Args:
        dtype: of the result; everything is computed in float32, which holds all that a file says.
        read: called with the size of each tensor, in bytes of float32, once it is read.

    Raises:
        UsageError: a tensor without a place in the model.
    """
    arch = architecture(header)
    found: dict[str, Tensor] = {}
    for name in header.tensors:
        if name in FACTORS:  # in the configuration
            continue
        to = _place(arch, name)
        if to is None:
            raise UsageError(
                f"{header.path.name} has a tensor {name}, for which a {arch} model has no place here; take the model "
                "as safetensors"
            )
        value = torch.from_numpy(header.tensor(name))
        found.update({name: part.to(dtype) for name, part in _laid_out(arch, name, to, value, config)})
        if read is not None:
            read(value.nbytes)
    return _merged_experts(found) if arch == "gpt-oss" else found


def _place(arch: str, name: str) -> str | None:
    """The name in a checkpoint, with {} for the number of an expert or head; None where there is none."""
    at, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", at)
    ends, prefix = (_GPT2_ENDS, "transformer.h") if arch == "gpt2" else (_ENDS, "model.layers")
    if layer is None:
        return f"{ends[at]}.{suffix}" if at in ends else None
    to = _LAYERS[arch].get(layer.group(2))
    if to is None:
        return None
    return f"{prefix}.{layer.group(1)}.{to}" + ("" if to.endswith(".sinks") else f".{suffix}")


def _laid_out(arch: str, name: str, to: str, value: Tensor, config: PretrainedConfig) -> _Named:
    change = _CHANGES.get(arch)
    if change is not None:
        value = change(name, value, config)
    if "ffn_gate_inp_shexp" in name:
        value = value.reshape(1, -1)  # written as a vector
    if "{}" not in to:
        yield to, value
        return
    for number, part in enumerate(value):
        yield to.format(number), part.clone()


def _halves(name: str, value: Tensor, config: Any) -> Tensor:
    """Undo the interleaving of the two halves of each head's rotation."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return value
    return value.reshape(count, value.shape[0] // count // 2, 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _less_one(name: str, value: Tensor, config: Any) -> Tensor:
    """Norms are stored as one more than the weight."""
    return value - 1 if name.endswith("norm.weight") else value


def _transposed(name: str, value: Tensor, config: Any) -> Tensor:
    """GPT-2 stores its matrices the other way round than linear layers do."""
    return value.T.contiguous() if name.startswith("blk.") and value.dim() == 2 else value


_CHANGES: dict[str, Callable[[str, Tensor, Any], Tensor]] = {
    "llama": _halves,
    "gemma2": _less_one,
    "gemma3": _less_one,
    "nemotron": _less_one,
    "gpt2": _transposed,
}


def _merged_experts(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """gpt-oss keeps gate and up interleaved in one matrix per layer, input rows first."""
    merged: dict[str, Tensor] = {}
    for name, value in found.items():
        at, _, part = name.rpartition(".experts.")
        if not at:
            merged[name] = value
            continue
        part, _, suffix = part.rpartition(".")
        if part == "up":
            continue
        if part == "gate":
            part, value = "gate_up_proj", torch.stack([value, found[f"{at}.experts.up.{suffix}"]], dim=2).flatten(1, 2)
        if suffix == "weight":
            value = value.transpose(1, 2).contiguous()
        merged[f"{at}.experts.{part}" + ("_bias" if suffix == "bias" else "")] = value
    return merged

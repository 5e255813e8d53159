"""What each architecture's keys in a GGUF file mean for transformers: one function per architecture.

What llama.cpp computes for a key that is absent is written out here, because the defaults of a configuration class are
one checkpoint's values. Keys by architecture: llama.cpp's `src/models/*.cpp` and `conversion/*.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forward_influence.models.gguf.header import Header
from forward_influence.models.gguf.rope import rope_parameters

Settings = dict[str, Any]


def one(header: Header, key: str, default: Any = None) -> Any:
    """A number that may be written once per layer, where all layers have the same.

    Raises:
        UsageError: they differ.
    """
    value = header.require(key) if default is None else header.get(key, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise header.refusal(key, value, "which differs between layers")
        value = value[0]
    return value


def _kv_heads(header: Header, arch: str) -> Settings:
    heads = one(header, f"{arch}.attention.head_count")
    return {"num_key_value_heads": one(header, f"{arch}.attention.head_count_kv", heads)}


def _head_dim(header: Header, arch: str) -> int:
    """Entries of a key, which a value must have as well."""
    even = header.require(f"{arch}.embedding_length") // one(header, f"{arch}.attention.head_count")
    size = int(header.get(key := f"{arch}.attention.key_length", even))
    values = header.get(f"{arch}.attention.value_length", even)
    if values != size:
        raise header.refusal(key, size, f"where values have {values} entries")
    return size


def _fixed_head_dim(header: Header, arch: str) -> int:
    """The same for architectures whose heads share the hidden size evenly."""
    size = _head_dim(header, arch)
    if size * one(header, f"{arch}.attention.head_count") != header.require(f"{arch}.embedding_length"):
        raise header.refusal(f"{arch}.attention.key_length", size, "where heads divide the hidden size evenly")
    return size


def _dense(header: Header, arch: str) -> Settings:
    """Plain feed-forward layers and attention without windows."""
    for name in ("expert_count", "expert_used_count"):
        header.expect(f"{arch}.{name}", 0)
    _no_window(header, arch)
    return {"intermediate_size": one(header, f"{arch}.feed_forward_length")}


def _no_window(header: Header, arch: str) -> None:
    window = header.get(key := f"{arch}.attention.sliding_window", 0)
    if 0 < window < header.require(f"{arch}.context_length"):
        raise header.refusal(key, window, f"where the layers of a {arch} model see everything")


def _experts(header: Header, arch: str) -> Settings:
    """Every layer routed."""
    _no_window(header, arch)
    header.expect(f"{arch}.expert_weights_scale", 1.0, 0.0)
    width = one(header, f"{arch}.expert_feed_forward_length")
    return {
        "intermediate_size": one(header, f"{arch}.feed_forward_length", width),
        "moe_intermediate_size": width,
        "num_experts": header.require(f"{arch}.expert_count"),
        "num_experts_per_tok": one(header, f"{arch}.expert_used_count"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "hidden_act": "silu",
    }


def _has(header: Header, name: str) -> bool:
    """Whether the first layer has a tensor."""
    return f"blk.0.{name}" in header.tensors


def _rms(header: Header, arch: str) -> Settings:
    return {"rms_norm_eps": header.require(f"{arch}.attention.layer_norm_rms_epsilon")}


def _rope(header: Header, arch: str, head_dim: int, partial: bool = False) -> Settings:
    return {"rope_parameters": rope_parameters(header, arch, head_dim, partial)}


def _llama(header: Header, arch: str) -> Settings:
    head_dim = _head_dim(header, arch)
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rms(header, arch),
        **_rope(header, arch, head_dim),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": _has(header, "attn_q.bias"),
        "mlp_bias": _has(header, "ffn_up.bias"),
    }


def _qwen2(header: Header, arch: str) -> Settings:
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rms(header, arch),
        **_rope(header, arch, _fixed_head_dim(header, arch)),
        "hidden_act": "silu",
        "use_sliding_window": False,
    }


def _qwen3(header: Header, arch: str) -> Settings:
    head_dim = _head_dim(header, arch)
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rms(header, arch),
        **_rope(header, arch, head_dim),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
    }


def _qwen2moe(header: Header, arch: str) -> Settings:
    header.expect(f"{arch}.expert_weights_norm", False)
    header.expect(f"{arch}.expert_gating_func", 1)  # softmax
    return {
        **_experts(header, arch),
        **_kv_heads(header, arch),
        **_rms(header, arch),
        **_rope(header, arch, _fixed_head_dim(header, arch)),
        "shared_expert_intermediate_size": header.require(f"{arch}.expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
        "qkv_bias": True,
    }


def _qwen3moe(header: Header, arch: str) -> Settings:
    header.expect(f"{arch}.expert_weights_norm", True)
    header.expect(f"{arch}.expert_gating_func", 1)
    head_dim = _head_dim(header, arch)
    return {
        **_experts(header, arch),
        **_kv_heads(header, arch),
        **_rms(header, arch),
        **_rope(header, arch, head_dim),
        "head_dim": head_dim,
        "attention_bias": False,
        "norm_topk_prob": True,
    }


def _phi3(header: Header, arch: str) -> Settings:
    rope = rope_parameters(header, arch, _fixed_head_dim(header, arch), partial=True)
    if rope["rope_type"] not in ("default", "longrope"):
        key = f"{arch}.rope.scaling.type"
        raise header.refusal(key, header.get(key), "where Phi-3 has LongRoPE or none")
    # Files without this key are of models with and without a window; 0 says that there is none.
    window = header.require(f"{arch}.attention.sliding_window")
    for name in ("expert_count", "expert_used_count"):
        header.expect(f"{arch}.{name}", 0)
    length = header.require(f"{arch}.context_length")
    return {
        **_kv_heads(header, arch),
        **_rms(header, arch),
        "intermediate_size": one(header, f"{arch}.feed_forward_length"),
        "rope_parameters": rope,
        "original_max_position_embeddings": rope.get("original_max_position_embeddings", length),
        "sliding_window": window or None,
        "hidden_act": "silu",
    }


def _window_layers(header: Header, arch: str, period: int) -> list[str]:
    """Windows in all layers but the last of every `period`, where the file says nothing else."""
    layers = header.require(f"{arch}.block_count")
    pattern = header.get(key := f"{arch}.attention.sliding_window_pattern", period)
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise header.refusal(key, pattern, f"where the model has {layers} layers")
        windows = [bool(value) for value in pattern]
    else:
        windows = [pattern == 0 or i % pattern < pattern - 1 for i in range(layers)]
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _same_heads(header: Header, arch: str, head_dim: int) -> None:
    """Refuse other heads or rotations in layers with windows than in full layers."""
    for name in ("attention.key_length_swa", "attention.value_length_swa"):
        header.expect(f"{arch}.{name}", head_dim)
    header.expect(f"{arch}.rope.dimension_count_swa", header.get(f"{arch}.rope.dimension_count", head_dim))


def _gemma(header: Header, arch: str, largest: int) -> Settings:
    """What Gemma 2 and 3 share; only the model of `largest` layers scales its attention by the hidden size."""
    head_dim = _head_dim(header, arch)
    _same_heads(header, arch, head_dim)
    for name in ("expert_count", "expert_used_count"):
        header.expect(f"{arch}.{name}", 0)
    heads, hidden = one(header, f"{arch}.attention.head_count"), header.require(f"{arch}.embedding_length")
    return {
        **_kv_heads(header, arch),
        **_rms(header, arch),
        "intermediate_size": one(header, f"{arch}.feed_forward_length"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": hidden // heads if header.require(f"{arch}.block_count") == largest else head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }


def _gemma2(header: Header, arch: str) -> Settings:
    rope = rope_parameters(header, arch, _head_dim(header, arch))
    header.expect(f"{arch}.rope.freq_base_swa", rope["rope_theta"])
    return {
        **_gemma(header, arch, largest=46),
        "rope_parameters": rope,
        "sliding_window": header.get(f"{arch}.attention.sliding_window", 4096),
        "layer_types": _window_layers(header, arch, 2),
        "attn_logit_softcapping": header.get(f"{arch}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.get(f"{arch}.final_logit_softcapping", 30.0),
    }


def _gemma3(header: Header, arch: str) -> Settings:
    full = rope_parameters(header, arch, _head_dim(header, arch))
    window = header.get(f"{arch}.attention.sliding_window", 0)
    local = header.get(f"{arch}.rope.freq_base_swa", 10000.0)
    layers = _window_layers(header, arch, 6)
    if not window:
        layers = ["full_attention"] * len(layers)
    header.expect(f"{arch}.attn_logit_softcapping", 0.0)
    return {
        **_gemma(header, arch, largest=62),
        # Scaling holds in full layers alone.
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "sliding_window": window or header.require(f"{arch}.context_length"),
        "layer_types": layers,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": header.get(f"{arch}.final_logit_softcapping", 0.0) or None,
    }


def _gpt2(header: Header, arch: str) -> Settings:
    dense = _dense(header, arch)
    heads, hidden = one(header, f"{arch}.attention.head_count"), header.require(f"{arch}.embedding_length")
    header.expect(f"{arch}.attention.head_count_kv", heads)
    header.expect(f"{arch}.attention.key_length", hidden // heads)
    header.expect(f"{arch}.attention.value_length", hidden // heads)
    return {
        "n_inner": dense["intermediate_size"],
        "layer_norm_epsilon": header.require(f"{arch}.attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _starcoder2(header: Header, arch: str) -> Settings:
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rope(header, arch, _fixed_head_dim(header, arch)),
        "norm_epsilon": header.require(f"{arch}.attention.layer_norm_epsilon"),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": _has(header, "attn_q.bias"),
        "sliding_window": None,
    }


def _stablelm(header: Header, arch: str) -> Settings:
    # Converters say "parallel" where the configuration says nothing; llama.cpp goes by the norm, and so does this.
    header.get(f"{arch}.use_parallel_residual")
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rope(header, arch, _fixed_head_dim(header, arch), partial=True),
        "layer_norm_eps": header.require(f"{arch}.attention.layer_norm_epsilon"),
        "hidden_act": "silu",
        "use_qkv_bias": _has(header, "attn_q.bias"),
        "qk_layernorm": _has(header, "attn_q_norm.weight"),
        "use_parallel_residual": not _has(header, "ffn_norm.weight"),
    }


def _nemotron(header: Header, arch: str) -> Settings:
    head_dim = _head_dim(header, arch)
    eps = header.require(f"{arch}.attention.layer_norm_epsilon")
    header.expect(f"{arch}.attention.layer_norm_rms_epsilon", eps)  # converters write it under both names
    return {
        **_dense(header, arch),
        **_kv_heads(header, arch),
        **_rope(header, arch, head_dim, partial=True),
        "head_dim": head_dim,
        "norm_eps": eps,
        "hidden_act": "relu2",
        "attention_bias": _has(header, "attn_q.bias"),
        "mlp_bias": _has(header, "ffn_up.bias"),
    }


def _gpt_oss(header: Header, arch: str) -> Settings:
    head_dim = _head_dim(header, arch)
    _same_heads(header, arch, head_dim)
    rope = rope_parameters(header, arch, head_dim)
    header.expect(f"{arch}.rope.freq_base_swa", rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False  # the released models' own; the file has no key for it
    width = one(header, f"{arch}.expert_feed_forward_length")
    header.expect(f"{arch}.feed_forward_length", width, 0)
    return {
        **_kv_heads(header, arch),
        **_rms(header, arch),
        "head_dim": head_dim,
        "rope_parameters": rope,
        "intermediate_size": width,
        "num_local_experts": header.require(f"{arch}.expert_count"),
        "num_experts_per_tok": one(header, f"{arch}.expert_used_count"),
        "sliding_window": header.require(f"{arch}.attention.sliding_window"),
        "layer_types": _window_layers(header, arch, 2),
        "attention_bias": True,
        "hidden_act": "silu",
    }


#: `general.architecture` -> transformers' model type, and what reads the rest.
ARCHITECTURES: dict[str, tuple[str, Callable[[Header, str], Settings]]] = {
    "llama": ("llama", _llama),
    "qwen2": ("qwen2", _qwen2),
    "qwen2moe": ("qwen2_moe", _qwen2moe),
    "qwen3": ("qwen3", _qwen3),
    "qwen3moe": ("qwen3_moe", _qwen3moe),
    "phi3": ("phi3", _phi3),
    "gemma2": ("gemma2", _gemma2),
    "gemma3": ("gemma3_text", _gemma3),
    "gpt2": ("gpt2", _gpt2),
    "starcoder2": ("starcoder2", _starcoder2),
    "stablelm": ("stablelm", _stablelm),
    "nemotron": ("nemotron", _nemotron),
    "gpt-oss": ("gpt_oss", _gpt_oss),
}

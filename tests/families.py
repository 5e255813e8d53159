"""Tiny random configurations of every causal language model family that the installed transformers names."""

from __future__ import annotations

from typing import Any

import torch
from released_layouts import LAYOUTS, family
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
LAYERS = 3
WINDOW = 16

#: Sizes by what configurations call them; only names that a configuration has are set.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "decoder_ffn_dim", "dff"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    "encoder_attention_heads": 4,
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "v_head_dim", "qk_nope_head_dim", "d_kv"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "index_head_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "n_positions"), 512),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
}

#: What some families need beside, because parts of their sizes hang together; `...` leaves their own default.
CHANGES: dict[str, dict[str, Any]] = {
    **LAYOUTS,
    **{key: {"sliding_window": 128, "head_dim": 8} for key in ("mistral", "moshi", "ministral")},
    **{key: {"rotary_dim": 4} for key in ("codegen", "gptj")},
    "gpt_neo": {"attention_types": [[["local", "global", "global"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "recurrent_gemma": {"lru_width": 32},
    "reformer": {"axial_pos_embds": False},
    **{key: {"head_dim": 8} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe")},
    "granite": {"logits_scaling": 8.0},
    "stablelm": {"partial_rotary_factor": 0.5},  # two pairs of channels: one has no order
    "gpt_neox": {"rotary_pct": 0.5},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "xlm": {"emb_dim": 32},
    "prophetnet": {"num_hidden_layers": ...},
    "xlnet": {"max_position_embeddings": ...},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "dots3_note_text": {"num_key_value_heads": 4},
}


def names() -> list[str]:
    """Every model type of transformers' causal language model mapping, and further layouts of some, sorted."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *LAYOUTS})


def tiny_config(name: str) -> PreTrainedConfig:
    """A tiny configuration of a family, from its own defaults with the sizes replaced, in a released layout."""
    return _shrunk(CONFIG_MAPPING[family(name)], {**CHANGES.get(name, {})})


def _shrunk(make: type[PreTrainedConfig], changes: dict[str, Any]) -> PreTrainedConfig:
    default = make()
    settings = {}
    aliases = set(getattr(make, "attribute_map", {}))
    for key, value in SIZES.items():
        if key not in aliases and key not in make.sub_configs and _present(default, key):
            settings[key] = value
    if "layer_types" not in aliases and _present(default, "layer_types"):
        settings["layer_types"] = _layer_types(default.layer_types)
    if _present(default, "mlp_layer_types"):
        settings["mlp_layer_types"] = [default.mlp_layer_types[0], *[default.mlp_layer_types[-1]] * (LAYERS - 1)]
    if getattr(default, "is_decoder", None) is False:
        settings["is_decoder"] = True
    if getattr(default, "is_encoder_decoder", None):
        settings["is_encoder_decoder"] = False
    for key in make.sub_configs:
        if isinstance(sub := getattr(default, key, None), PreTrainedConfig):
            settings[key] = _shrunk(type(sub), changes.get(key) or CHANGES.get(sub.model_type, {}))
    settings.update({key: value for key, value in changes.items() if key not in make.sub_configs})
    settings = {key: value for key, value in settings.items() if value is not ...}
    return make(**settings)


def _present(default: PreTrainedConfig, key: str) -> bool:
    """Whether a configuration has a value under this name that a caller may choose."""
    there = getattr(type(default), key, None)
    if isinstance(there, property) and there.fset is None:
        return False
    try:
        return getattr(default, key, None) is not None
    except Exception:  # some refuse to give what differs from layer to layer
        return key in default.to_dict()


def _layer_types(kinds: list[str]) -> list[str]:
    """The first kind, then the others: with windows and full attention, one of the first and two of the second."""
    distinct = list(dict.fromkeys(kinds))
    if set(distinct) == {"sliding_attention", "full_attention"}:
        return ["sliding_attention", "full_attention", "full_attention"]
    return (distinct * LAYERS)[:LAYERS]


def tiny_family(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, with weights large enough that attention is far from uniform."""
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 16_000_000:
        raise ValueError(f"{name}: {size} parameters is not tiny")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    _remember(model)
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernel has no float64
    return model.to(dtype).eval().requires_grad_(False)


def _remember(model: PreTrainedModel) -> None:
    """Make states forget slowly, as trained ones do: a state that forgot its context could be lost unnoticed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.copy_(-3 + 0.2 * torch.tanh(parameter))
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.copy_(-1 + 0.2 * torch.tanh(parameter))

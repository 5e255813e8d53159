"""Layouts of released checkpoints, shrunk: which kinds of layers a family has, in which order, and what they share.

transformers' defaults are often a layout that no checkpoint has: LFM2 without convolutions, Granite 4 without
attention, Gemma 4 without shared caches. A family that has several layouts among its checkpoints stands here more than
once, as `model_type:layout`.
"""

from __future__ import annotations

from typing import Any

#: Extended positions of DeepSeek V2 and later: the scores are scaled beside the frequencies (`mscale`).
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
#: Latent attention: keys and values of all heads come from one latent per token.
_LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4, "max_position_embeddings": 2560}
#: Indexers pick among 40 context tokens; with few heads, ReLU zeros would tie and the picks would be arbitrary.
_INDEXER = {"index_n_heads": 32, "index_head_dim": 8, "index_topk": 20}

_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_QWEN = {
    **_DELTA_NET,
    "num_hidden_layers": 5,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention", "full_attention"],
    "rope_parameters": {"rope_theta": 10000000.0, "partial_rotary_factor": 0.5, "rope_type": "default"},
}
_QWEN_TEXT = {
    **_QWEN,
    "rope_parameters": {
        "rope_theta": 10000000.0,
        "partial_rotary_factor": 0.5,
        "rope_type": "default",
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 0],
    },
}
_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_KIMI_DELTA = {
    **_LATENT,
    "num_hidden_layers": 5,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense", *["sparse"] * 4],
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "num_experts_per_token": 2,
    "num_expert_group": 1,
    "q_lora_rank": None,
}
_GEMMA_4_SHARED = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "num_key_value_heads": 1,
    "hidden_size_per_layer_input": 8,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 16,
}
_GEMMA_4_LARGE = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 16,
}
_GEMMA_4_EXPERTS = {
    **_GEMMA_4_LARGE,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}

#: What a layout changes of a family's shrunk defaults.
LAYOUTS: dict[str, dict[str, Any]] = {
    # Gated delta-net: three of four layers keep a state.
    "qwen3_next": {**_QWEN, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_5_text": _QWEN_TEXT,
    "qwen3_5": {"text_config": _QWEN_TEXT},
    "qwen3_5_moe_text": _QWEN_TEXT,
    "qwen3_5_moe": {"text_config": _QWEN_TEXT},
    "olmo_hybrid": {
        **_DELTA_NET,
        "linear_num_key_heads": 4,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_allow_neg_eigval": True,
    },
    "lara_mini": {
        **_DELTA_NET,
        "num_hidden_layers": 5,
        "layer_types": [
            "linear_attention",
            "sliding_attention",
            "linear_attention",
            "full_attention",
            "sliding_attention",
        ],
    },
    # Kimi's delta attention beside latent attention.
    "kimi_linear": _KIMI_DELTA,
    "bailing_hybrid": {**_KIMI_DELTA, "num_expert_group": 2, "topk_group": 1, "num_experts": 4},
    # Mamba 2.
    "nemotron_h": {  # Nemotron-H has the dense ones between, Nemotron 3 the mixtures of experts
        "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "moe", "full_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "granitemoehybrid": {  # Granite 4.0 H: no rotary embedding
        **_MAMBA_2,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "position_embedding_type": "nope",
        "num_local_experts": 4,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "granitemoehybrid:without experts": {  # Granite 4.0 H 1B and 350M
        **_MAMBA_2,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "position_embedding_type": "nope",
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "attention_multiplier": 0.125,
    },
    "granitemoehybrid:attention only": {  # Granite 4.0 Micro, 1B and 350M
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
        "position_embedding_type": "rope",
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "attention_multiplier": 0.25,
        **_MAMBA_2,
    },
    "bamba": {**_MAMBA_2, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "falcon_h1": {
        **_MAMBA_2,
        "mamba_d_ssm": 64,
        "mamba_rms_norm": True,
        "attention_in_multiplier": 0.9,
        "attention_out_multiplier": 0.8,
        "key_multiplier": 0.7,
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.6,
        "ssm_multipliers": [0.9, 0.8, 0.7, 1.1, 1.2],
        "mlp_multipliers": [0.9, 0.6],
        "embedding_multiplier": 5.6,
        "lm_head_multiplier": 0.5,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"],
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 8,
        "use_mem_rope": True,
        "n_mamba_heads": 8,
        "mamba_ngroups": 2,
        "mamba_d_state": 8,
        "chunk_size": 16,
        "num_key_value_heads": 4,
        "head_dim": ...,
    },
    # Mamba 1.
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
        "num_key_value_heads": 4,
        "head_dim": ...,
    },
    # Short convolutions.
    "lfm2": {
        "num_hidden_layers": 5,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    },
    "lfm2_moe": {
        "num_hidden_layers": 5,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 2,
    },
    "lfm3": {
        "num_hidden_layers": 6,
        "layer_types": ["conv", "conv", "full_attention", "conv", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
        },
    },
    "zaya": {  # convolutions over keys and values, beside attention in one layer
        "num_hidden_layers": 3,
        "layer_types": ["hybrid"] * 3,
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "rope_parameters": {
            "hybrid": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5},
            "hybrid_sliding": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    },
    # Latent attention.
    "deepseek_v2": {  # V2 and its Coder
        **_LATENT,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
    },
    "deepseek_v2:Lite": {
        **_LATENT,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        "q_lora_rank": None,
        "topk_method": "greedy",
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
    },
    "deepseek_v3": {  # V3, R1, V3.1, Kimi K2
        **_LATENT,
        "rope_parameters": _YARN,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
    },
    "sarvam_mla": {**_LATENT, "rope_parameters": _YARN, "q_lora_rank": None, "num_experts_per_tok": 2},
    "axk1": {**_LATENT, "rope_parameters": _YARN, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "youtu": {**_LATENT},
    "glm4_moe_lite": {**_LATENT, "mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts_per_tok": 2},
    "longcat_flash": {  # two attentions, and two layers of the cache, in every layer
        **_LATENT,
        "num_layers": 2,
        "num_hidden_layers": ...,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 48,
        "zero_expert_num": 1,
    },
    "minicpm3": {
        **_LATENT,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.1, 1.6],
            "long_factor": [1.1, 1.6],
            "original_max_position_embeddings": 2560,
        },
    },
    # Latents and an indexer.
    "deepseek_v32": {
        **_LATENT,
        **_INDEXER,
        "rope_parameters": _YARN,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 2,
    },
    "glm_moe_dsa": {**_LATENT, **_INDEXER, "num_experts_per_tok": 2},  # GLM-5: every layer has its indexer
    "glm_moe_dsa:shared indexers": {  # GLM-5.2
        **_LATENT,
        **_INDEXER,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "layer_types": ["indexed_attention"] * 4,
        "indexer_types": ["full", "full", "shared", "shared"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "hy_v4": {
        **_LATENT,
        **_INDEXER,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 5,
        "layer_types": ["indexed_attention"] * 5,
        "indexer_types": ["full", "full", "shared", "shared", "full"],
        "mlp_layer_types": ["dense", *["sparse"] * 4],
    },
    "axk2": {**_LATENT, **_INDEXER, "num_experts_per_tok": 2, "gated_norm_rank": 4},
    # Layers that attend over another layer's cache.
    "gemma3n_text": {
        "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "num_kv_shared_layers": 4,
        "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 6,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "final_logit_softcapping": 30.0,
    },
    "gemma4_text": _GEMMA_4_SHARED,  # E2B, E4B
    "gemma4": {"text_config": _GEMMA_4_SHARED},
    "gemma4_text:31B": _GEMMA_4_LARGE,
    "gemma4_text:26B-A4B": _GEMMA_4_EXPERTS,
    "gemma4:26B-A4B": {"text_config": _GEMMA_4_EXPERTS},
    # Blocks of keys picked by an indexer.
    "minimax_m3_vl_text": {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 3,
        "index_local_blocks": 1,
        "rotary_dim": 4,
        "dense_intermediate_size": 48,
    },
}
#: A token that comes alone is spared the lower limit on its time step (Mamba 2 of Nemotron-H and Zamba 2), which shows
#: where the limit is reached.
LAYOUTS |= {f"{name}:limited time steps": {**LAYOUTS[name], "time_step_min": 0.3} for name in ("nemotron_h", "zamba2")}


def family(name: str) -> str:
    """The model type of a layout's name."""
    return name.split(":")[0]

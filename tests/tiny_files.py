"""Tiny models on disk: a folder as transformers saves it, and a GGUF file written from the same weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tiny import tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
#: Pairs that the vocabulary merges: enough to see whether two line breaks, or two spaces, stay together.
MERGES = (("Ċ", "Ċ"), ("Ġ", "Ġ"), ("t", "h"), ("th", "e"))
VOCABULARY = 320


def tokens() -> list[str]:
    """The vocabulary: specials, the 256 bytes, merges, and fillers up to `VOCABULARY`."""
    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    return known + [f"<filler{i}>" for i in range(VOCABULARY - len(known))]


def tiny_tokenizer(begin: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; with `begin` it puts <s> before a text."""
    vocabulary = {token: i for i, token in enumerate(tokens())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if begin:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def tiny_llama() -> PreTrainedModel:
    """A random Llama in float32 that goes with the tokenizer."""
    return tiny_model("llama", torch.float32, vocab_size=VOCABULARY, tie_word_embeddings=False)


def save_tiny(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """Save a tiny model and its tokenizer as transformers does."""
    (model or tiny_llama()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as GGUF orders them: the two halves of each head's rotation alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: PreTrainedModel, pre: str = "smollm") -> Path:
    """Write a Llama as a GGUF file in float32, with the tiny vocabulary."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens())
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens()])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)

    def put(name: str, tensor: torch.Tensor) -> None:
        writer.add_tensor(name, np.ascontiguousarray(tensor.float().numpy()))

    put("token_embd.weight", weights["model.embed_tokens.weight"])
    put("output_norm.weight", weights["model.norm.weight"])
    put("output.weight", weights["lm_head.weight"])
    for i in range(config.num_hidden_layers):
        at, to = f"model.layers.{i}.", f"blk.{i}."
        put(to + "attn_q.weight", _interleaved(weights[at + "self_attn.q_proj.weight"], config.num_attention_heads))
        put(to + "attn_k.weight", _interleaved(weights[at + "self_attn.k_proj.weight"], config.num_key_value_heads))
        put(to + "attn_v.weight", weights[at + "self_attn.v_proj.weight"])
        put(to + "attn_output.weight", weights[at + "self_attn.o_proj.weight"])
        put(to + "ffn_gate.weight", weights[at + "mlp.gate_proj.weight"])
        put(to + "ffn_up.weight", weights[at + "mlp.up_proj.weight"])
        put(to + "ffn_down.weight", weights[at + "mlp.down_proj.weight"])
        put(to + "attn_norm.weight", weights[at + "input_layernorm.weight"])
        put(to + "ffn_norm.weight", weights[at + "post_attention_layernorm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""Tiny models on disk: a folder as transformers saves it; `gguf_files` writes GGUF files of them."""

from __future__ import annotations

from pathlib import Path

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

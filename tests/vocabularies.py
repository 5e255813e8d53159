"""Tokenizers of every kind that text is cut with, made in memory from a small text."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT = (
    "The keeper of the house doesn't know what the women of the city have seen, and they will not say it to him. "
    "It's not the keeper's house; we've been within the walls since 1945, and nobody wrote to us about 12 men. "
) * 4


def byte_level() -> Tokenizer:
    """GPT-2's kind: bytes, and merges of them within words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, **_quiet("<s>")))
    return made


def metaspace() -> Tokenizer:
    """SentencePiece's unigram kind, as T5 and others have it."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **_quiet("<unk>", "<s>"))
    made.train_from_iterator([TEXT], trainer)
    return made


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: SentencePiece's BPE, where what the vocabulary lacks is written in bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = _llama_decoder(decoders.Strip(" ", 1, 0))
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=480, **_quiet(*special)))
    return made


def gemma() -> Tokenizer:
    """Gemma's kind: as Llama 2's, but a text begins without a space, and words are merged across it nowhere."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.decoder = _llama_decoder()
    special = ["<unk>", "<bos>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=480, **_quiet(*special)))
    return made


def word_piece() -> Tokenizer:
    """BERT's kind: whole words, and ## before what continues one."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=200, **_quiet("[UNK]", "[CLS]")))
    return made


def _llama_decoder(*last: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def _quiet(*special: str) -> dict[str, object]:
    return {"special_tokens": list(special), "show_progress": False}


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "byte fallback": byte_fallback,
    "gemma": gemma,
    "word-piece": word_piece,
}


def vocabulary(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers by its kind; "slow" is one in plain Python, of bytes."""
    if kind == "slow":
        return ByT5Tokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), clean_up_tokenization_spaces=False)

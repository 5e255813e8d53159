"""The tokenizer of a GGUF file: byte-level pairs ("gpt2") and SentencePiece pairs ("llama"); a key is read or refused.

A file holds tokens, merges or scores, and flags; how text is split and normalised goes by names. Both kinds are built
from the `tokenizers` library's parts as the tokenizer.json of such models has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forward_influence.models.gguf.header import Header
from forward_influence.models.gguf.splits import SPLITS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_AT = "tokenizer.ggml"
#: `tokenizer.ggml.token_type`.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
#: Ids of SentencePiece vocabularies whose file does not say them.
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
#: Tokens for filling gaps and classifying, chat templates for other ends: nothing here uses them.
_INFORMATION = (
    *(f"{_AT}.{name}_token_id" for name in ("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle")),
    *(f"{_AT}.fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    "tokenizer.chat_templates",
    "tokenizer.huggingface.json",  # the same tokenizer once more
)


def token_id(header: Header, name: str) -> int | None:
    """The id of a special token ("bos", "eos", "eot", "eom", "unknown", "padding"); None where there is none.

    Raises:
        UsageError: no such token.
    """
    default = _SENTENCEPIECE_IDS.get(name) if header.get(f"{_AT}.model") == "llama" else None
    value = header.get(key := f"{_AT}.{name}_token_id", default)
    count = len(header.get(f"{_AT}.tokens", ()))
    if value is not None and not 0 <= value < count:
        raise header.refusal(key, value, f"where there are {count} tokens")
    return value


def tokenizer_of(header: Header) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file describes.

    Raises:
        UsageError: another kind of vocabulary, an unknown way of splitting, or a key that has no counterpart.
    """
    with header.describing("tokenizer"):
        return _made(header)


def _made(header: Header) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    tokens, types = _tokens(header)
    kind = header.require(f"{_AT}.model")
    if kind == "gpt2":
        backend, begins = _byte_level(header, tokens)
    elif kind == "llama":
        backend, begins = _sentencepiece(header, tokens, types)
    else:
        raise header.refusal(f"{_AT}.model", kind, "a kind of vocabulary that is not read here (gpt2 and llama are)")
    _add_tokens(header, backend, tokens, types)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {to: None if (i := token_id(header, name)) is None else tokens[i] for name, to in names.items()}
    _add_ends(header, backend, special, begins)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    made.chat_template = header.get("tokenizer.chat_template")
    _nothing_left(header)
    return made


def _tokens(header: Header) -> tuple[list[str], list[int]]:
    """Texts and types, which no two tokens share."""
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(header.require(f"{_AT}.tokens"))]
    types = header.get(f"{_AT}.token_type") or [_NORMAL] * len(tokens)
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        what = f"where {len(set(tokens))} texts and {len(types)} types"
        raise header.refusal(f"{_AT}.tokens", len(tokens), f"{what} go with them")
    rows = header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else len(tokens)
    if len(tokens) > rows:
        raise header.refusal(f"{_AT}.tokens", len(tokens), f"where the embedding has {rows} rows")
    return tokens, types


def _byte_level(header: Header, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    """Pairs of byte letters, merged in the order of the file; whether the begin token is put before a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = header.get(f"{_AT}.pre", "default")
    split = SPLITS.get(pre)
    if split is None:
        raise header.refusal(f"{_AT}.pre", pre, "a way of splitting text that is not known here")
    header.expect(f"{_AT}.add_space_prefix", False)
    header.get(f"{_AT}.scores")  # SentencePiece's; some converters write zeros
    merges = [_pair(merge) for merge in header.require(f"{_AT}.merges")]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole_words))
    steps: list[Any] = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in split.expressions]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, split.begins


def _pair(merge: str) -> tuple[str, str]:
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1 :]


def _sentencepiece(header: Header, tokens: Sequence[str], types: Sequence[int]) -> tuple[Tokenizer, bool]:
    """Pairs whose result has the best score are merged first; spaces are written as ▁, unknown bytes as <0x..>."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    header.expect(f"{_AT}.pre", "default")
    header.expect(f"{_AT}.remove_extra_whitespaces", False)
    prefix = header.get(f"{_AT}.add_space_prefix", True)
    unknown = token_id(header, "unknown")
    model = models.BPE(
        vocab={text: i for i, text in enumerate(tokens)},
        merges=_merges(tokens, header.require(f"{_AT}.scores"), types),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    backend = Tokenizer(model)
    replaced: list[Any] = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *replaced] if prefix else replaced)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def _merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """All ways of putting a token together from two, the best first."""
    ids = {text: i for i, text in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for i, text in enumerate(tokens):
        if types[i] == _NORMAL:
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in ids and right in ids:
                    found.append((-scores[i], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(header: Header, backend: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control tokens and those that users defined are found whole in a text, before it is split."""
    from tokenizers import AddedToken

    # Phi-3 swallows the white space behind its control tokens; llama.cpp knows it by the model's name as well.
    strips = header.get("general.architecture") == "phi3" and header.get(f"{_AT}.model") == "llama"
    keeps = {"<unk>", "<s>", "<|endoftext|>"}
    control = [
        AddedToken(text, special=True, normalized=False, rstrip=strips and text not in keeps)
        for text, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _UNKNOWN)
    ]
    users = [
        AddedToken(text, special=False, normalized=False)
        for text, kind in zip(tokens, types, strict=True)
        if kind == _USER
    ]
    backend.add_special_tokens(control)
    backend.add_tokens(users)


def _add_ends(header: Header, backend: Tokenizer, special: dict[str, str | None], begins: bool) -> None:
    """The tokens that are put around a text."""
    from tokenizers.processors import TemplateProcessing

    header.expect(f"{_AT}.add_sep_token", False)
    around = []
    for key, name, default in (("add_bos_token", "bos_token", begins), ("add_eos_token", "eos_token", False)):
        wanted = header.get(f"{_AT}.{key}", default)
        if wanted and special[name] is None:
            raise header.refusal(f"{_AT}.{key}", wanted, f"where there is no {name.replace('_', ' ')}")
        around.append(special[name] if wanted else None)
    first, last = around
    single = [text for text in (first, "$A", last) if text is not None]
    pair = [*single, *(f"{text}:1" for text in (first, "$B", last) if text is not None)]
    marks = [(text, backend.token_to_id(text)) for text in dict.fromkeys(around) if text is not None]
    if marks:
        backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=marks)


def _nothing_left(header: Header) -> None:
    for name in ("eot", "eom"):  # in the configuration, where generation ends
        header.get(f"{_AT}.{name}_token_id")
    for key in header.unread("tokenizer."):
        if key not in _INFORMATION and not key.startswith("tokenizer.chat_template."):
            raise header.refusal(key, header.values[key], "which is not understood here")

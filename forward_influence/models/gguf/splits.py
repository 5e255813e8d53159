"""How byte-level vocabularies split a text before merging, by the names of `tokenizer.ggml.pre`.

A GGUF file names the split and does not hold it. Names and expressions are llama.cpp's (`src/llama-vocab.cpp`), written
as in the tokenizer.json that they come from where llama.cpp quotes it. Names whose splits are code there (`kimi-k2`,
`afmoe`), and `default`, which is a guess for files that name none, are not here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """A way of splitting.

    Attributes:
        expressions: applied in order, each to the pieces that the one before left; matches and what lies between them
            become pieces.
        whole_words: a piece that is a token is one, whatever the merges say (`ignore_merges`).
        begins: whether the begin token is put before a text unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CLITICS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CLITICS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CLITICS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(clitics: str, digits: str) -> str:
    """Words broken where the case turns, with their clitics."""
    return rf"{_BEFORE}{_UPPER}*{_LOWER}+{clitics}|{_BEFORE}{_UPPER}+{_LOWER}*{clitics}|{digits}|{_CASED_REST}"


_GPT4O = _cased(rf"{_CLITICS}?", r"\p{N}{1,3}")
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_SYMBOLS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_DEEPSEEK3 = rf"{_SYMBOLS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_NORDIC = r" ?[^(\s|.,!?…。，、।۔،)]+"

_PLAIN = Split((_GPT2,))
_SINGLE_DIGITS = Split((r"\p{N}", _GPT2))
_THREES = Split((_LLAMA3,))
_ONES = Split((_QWEN2,))
_BAILING = Split(
    (rf"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
)
_DEEPSEEK = Split((r"\p{N}{1,3}", _CJK, rf"{_DEEPSEEK3}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"))
_COHERE = Split((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))

SPLITS: dict[str, Split] = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        Split((_LLAMA3,), whole_words=True, begins=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _THREES),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum"), _PLAIN
    ),
    **dict.fromkeys(("modern-bert", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _SINGLE_DIGITS),
    **dict.fromkeys(("minerva-7b", "mellum2"), _SINGLE_DIGITS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2"), _ONES),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), _ONES),
    "qwen35": Split(
        (
            rf"{_CLITICS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "ufakzeka": Split((rf"{_WORDS}|\p{{N}}|{_REST}",)),
    "laguna": Split((r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": Split((r"\p{N}{1,3}", rf"{_CLITICS}|{_WORDS}|\p{{N}}+|{_REST}"), whole_words=True),
    "jais-2": Split(
        (
            rf"{_CLITICS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
            + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "seed-coder": Split((rf"{_CLITICS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)),
    "exaone-moe": Split(
        (
            rf"{_CLITICS}|{_BEFORE}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "tekken": Split((_cased("", r"\p{N}"),), whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), Split((_GPT4O,))),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _COHERE),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), Split((_NORDIC,))),
    "viking": Split((_NORDIC, r"\p{N}")),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
}

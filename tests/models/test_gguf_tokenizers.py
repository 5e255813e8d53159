"""Tokenizers of GGUF files: splits, merges, special tokens and flags, each against a plain account or by hand."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import pytest
from gguf_files import ABSENT, byte_level
from tiny_files import VOCABULARY, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from forward_influence.cli.app import main
from forward_influence.errors import UsageError
from forward_influence.models.gguf.files import load_tokenizer
from forward_influence.models.gguf.header import Header, read_header
from forward_influence.models.gguf.splits import SPLITS
from forward_influence.models.gguf.vocabulary import tokenizer_of

TEXTS = [
    "a 1 2",
    "the\n\n1945  12",
    "In 1945,\n\n12,000 men  and\twomen: it's naïve… <b>end</b>\n",
    "   leading\r\n \n  x  HELLO iPhone 3G IT'S foo_bar(x)=>{y+=1;} $10 日本語 e\u0301 हिन्दी ½\n\n\n",
]


def written(path: Path, vocabulary: dict[str, Any]) -> Path:
    return gguf_files.write(path / "model.gguf", "llama", tiny_llama(), {}, vocabulary=vocabulary)


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


@pytest.mark.parametrize("pre", SPLITS)
def test_texts_come_back_as_they_were(pre: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, byte_level(pre)))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


#: By hand; | parts pieces.
BY_HAND = [
    ("gpt-2", "It's 1234, a 1 2\n\n x", "It|'s| 1234|,| a| 1| 2|\n\n| x"),
    ("gpt-2", "end\n\n12  men", "end|\n|\n|12| | men"),
    ("smollm", "a 12\n\n34 IT'S", "a| |1|2|\n\n|3|4| IT|'|S"),
    ("starcoder", "x  12", "x|  |1|2"),
    ("llama-bpe", "IT'S 12345\n\n x,\n\ny", "IT|'S| |123|45|\n\n| x|,\n\n|y"),
    ("qwen2", "IT'S 123 x=y\n", "IT|'S| |1|2|3| x|=y|\n"),
    ("qwen35", "e\u0301tat 12", "e\u0301tat| |1|2"),
    ("tekken", "HelloWorld IT'S 12/\n", "Hello|World| IT|'S| |1|2|/\n"),
    ("gpt-4o", "HelloWorld it's 1234", "Hello|World| it's| |123|4"),
    ("deepseek-v3", "12345 日本 #tag x", "123|45| |日本| #|tag| x"),
    ("falcon", "x=1234, y", "x|=|123|4|,| y"),
    ("bloom", "one, two (x)", "one|,| two| (|x|)"),
    ("viking", "a 12.", "a| |1|2|."),
    ("superbpe", "x 1234567", "x |1|234|567"),
    ("seed-coder", "a,\n12", "a|,|\n|1|2"),
    ("ufakzeka", "Ali'nin 12", "Ali|'nin| |1|2"),
    ("exaone-moe", "two words 12", "two words| |1|2"),
]


@pytest.mark.parametrize(("pre", "text", "pieces"), BY_HAND)
def test_texts_are_split_as_the_name_says(pre: str, text: str, pieces: str, tmp_path: Path) -> None:
    """The tiny vocabulary merges nothing across these, so that the split is looked at itself."""
    tokenizer = load_tokenizer(written(tmp_path, byte_level(pre)))
    assert text.replace("|", "") == pieces.replace("|", "")
    offsets = [at for _, at in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert "|".join(text[a:b] for a, b in offsets) == pieces


def test_the_same_vocabulary_gives_the_tokens_of_its_own_tokenizer(tmp_path: Path) -> None:
    """GPT-2's split is what the tiny tokenizer was made with."""
    found, wanted = load_tokenizer(written(tmp_path, byte_level("gpt-2"))), tiny_tokenizer()
    for text in TEXTS:
        assert ids(found, text) == ids(wanted, text)
    assert found.get_vocab() == wanted.get_vocab()


def test_digits_that_stand_alone_move_line_breaks(tmp_path: Path) -> None:
    digits = load_tokenizer(written(tmp_path, byte_level("smollm")))
    pieces = digits.convert_ids_to_tokens(ids(digits, TEXTS[1]))
    assert pieces == ["the", "ĊĊ", "1", "9", "4", "5", "ĠĠ", "1", "2"]
    plain = load_tokenizer(written(tmp_path, byte_level("gpt-2")))
    assert plain.convert_ids_to_tokens(ids(plain, TEXTS[1]))[1:3] == ["Ċ", "Ċ"]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("qwen2", False)])
def test_words_that_are_tokens_need_no_merges_where_the_name_says_so(pre: str, whole: bool, tmp_path: Path) -> None:
    vocabulary = byte_level(pre)
    tokens = list(vocabulary["tokenizer.ggml.tokens"])
    tokens[-1] = "zyx"
    found = load_tokenizer(written(tmp_path, {**vocabulary, "tokenizer.ggml.tokens": tokens}))
    pieces = found.convert_ids_to_tokens(found("zyx", add_special_tokens=False).input_ids)
    assert pieces == (["zyx"] if whole else ["z", "y", "x"])


@pytest.mark.parametrize(
    ("pre", "flags", "around"),
    [
        ("gpt-2", {}, ([], [])),
        ("llama-bpe", {}, ([1], [])),
        ("tekken", {}, ([1], [])),
        ("llama-bpe", {"add_bos_token": False}, ([], [])),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ("gpt-2", {"add_eos_token": True, "bos_token_id": ABSENT}, ([], [2])),
    ],
)
def test_begin_and_end_tokens(
    pre: str, flags: dict[str, Any], around: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    keys = {**byte_level(pre), "tokenizer.ggml.add_bos_token": ABSENT}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    found = load_tokenizer(written(tmp_path, keys))
    plain = list(found("the", add_special_tokens=False).input_ids)
    assert ids(found, "the") == around[0] + plain + around[1]


def test_special_tokens_and_the_chat_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    tokens = byte_level()["tokenizer.ggml.tokens"]
    types = [3 if i < 3 else 4 if i == len(tokens) - 1 else 1 for i in range(len(tokens))]
    keys = {**byte_level(), "tokenizer.chat_template": template, "tokenizer.ggml.unknown_token_id": 0}
    keys |= {"tokenizer.ggml.token_type": types, "tokenizer.ggml.eot_token_id": 5}
    path = written(tmp_path, keys)
    found = load_tokenizer(path)
    assert (found.bos_token, found.eos_token, found.pad_token, found.unk_token) == ("<s>", "</s>", "<pad>", "<pad>")
    assert found.chat_template == template
    filler = tokens[-1]  # defined by users: found whole, and no special token
    assert ids(found, f"the{filler}<s>the") == [*ids(found, "the"), len(tokens) - 1, 1, *ids(found, "the")]
    assert found.decode([1, len(tokens) - 1], skip_special_tokens=True) == filler
    from forward_influence.models.gguf.files import load_config

    assert load_config(path).eos_token_id == [2, 5]


# ---------------------------------------------------------------- SentencePiece


def sentencepiece(seed: int = 0) -> dict[str, Any]:
    """A vocabulary of pieces with random scores, so that merges compete."""
    rng = random.Random(seed)
    letters = list("abcdeth ,.".replace(" ", "▁"))
    pieces: list[str] = []
    while len(pieces) < 40:
        piece = "".join(rng.choice(letters) for _ in range(rng.choice([2, 2, 3, 4])))
        if piece not in pieces and piece.rfind("▁") < 1:
            pieces.append(piece)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *pieces]
    tokens = [*tokens, "<user>"][:VOCABULARY]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<user>": 4}
    types = [6 if token.startswith("<0x") else kinds.get(token, 1) for token in tokens]
    scores = [rng.uniform(-50, 0) if kind == 1 else 0.0 for kind in types]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def plain_pieces(text: str, tokens: list[str], scores: list[float], prefix: bool) -> list[str]:
    """SentencePiece's own rule: of all neighbours that make a piece, the best scored are joined, the leftmost first."""
    score = dict(zip(tokens, scores, strict=True))
    parts = list(("▁" if prefix else "") + text.replace(" ", "▁"))
    while True:
        joins = [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in score]
        if not joins:
            break
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        found += [part] if part in score else [f"<0x{byte:02X}>" for byte in part.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(prefix: bool, tmp_path: Path) -> None:
    keys = sentencepiece()
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    found = load_tokenizer(written(tmp_path, {**keys, "tokenizer.ggml.add_space_prefix": prefix}))
    rng = random.Random(1)
    joined = 0
    for _ in range(300):
        text = "".join(rng.choice("abcdeth ,.ñ日") for _ in range(rng.randrange(1, 40)))
        pieces = found.convert_ids_to_tokens(found(text, add_special_tokens=False).input_ids)
        assert pieces == plain_pieces(text, tokens, scores, prefix)
        joined += sum(len(piece) > 1 and not piece.startswith("<0x") for piece in pieces)
        assert found.decode(found(text, add_special_tokens=False).input_ids) == text
    assert joined > 500
    assert ids(found, "a")[0] == 1  # SentencePiece's kind begins with the begin token unless it says otherwise
    assert found.convert_ids_to_tokens(ids(found, "a<user>")[-1:]) == ["<user>"]


REFUSED = [
    (
        {"tokenizer.ggml.pre": "my-own-split"},
        "tokenizer.ggml.pre = 'my-own-split', a way of splitting text that is not",
    ),
    ({"tokenizer.ggml.pre": ABSENT}, "tokenizer.ggml.pre"),
    ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre = 'default'"),
    ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = 'bert'"),
    ({"tokenizer.ggml.model": ABSENT}, "has no tokenizer.ggml.model"),
    ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix = True"),
    ({"tokenizer.ggml.add_sep_token": True}, "add_sep_token = True"),
    ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    (
        {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": ABSENT},
        "add_eos_token = True, where there",
    ),
    ({"tokenizer.ggml.pad_token_id": 1}, "pad_token_id = 1, which is not understood"),
    ({"tokenizer.ggml.merges": ABSENT}, "has no tokenizer.ggml.merges"),
    ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.tokens": ["a"] * 320}, "tokenizer.ggml.tokens"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = written(tmp_path, {**byte_level(), **keys})
    with pytest.raises(UsageError, match=words) as refused:
        load_tokenizer(path)
    assert "safetensors" in str(refused.value) or "cannot be read" in str(refused.value)


def test_the_command_says_it_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, byte_level("my-own-split"))
    with pytest.raises(SystemExit) as stopped:
        main(["models", "show", str(path)])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and "Traceback" not in err
    assert "model.gguf says tokenizer.ggml.pre = 'my-own-split'" in " ".join(err.split())


#: Keys of the format that change no token of a text, whatever they say: for filling gaps, or classifying.
HARMLESS = {
    *(f"tokenizer.ggml.{name}_token_id" for name in ("seperator", "mask", "prefix", "suffix", "middle")),
    *(f"tokenizer.ggml.fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    "tokenizer.ggml.eot_token_id",  # in the configuration, where generation ends
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.scores",  # a byte-level vocabulary has merges
    "tokenizer.chat_templates",  # names of templates beside the one that is used
    "tokenizer.chat_template.{name}",
    "tokenizer.huggingface.json",  # the same tokenizer once more
}


def test_every_key_of_the_format_is_carried_over_or_refused(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, byte_level()))
    before = described(header)
    keys = [value for name, value in vars(gguf.Keys.Tokenizer).items() if not name.startswith("_")]
    assert len(keys) > 25
    passed_over = set()
    for key in keys:
        for value in (7, "other"):
            changed = {**header.values, key: value}
            try:
                if described(Header(header.path, changed, header.tensors)) == before:
                    passed_over.add(key)
            except UsageError:
                continue
    assert passed_over <= HARMLESS


def described(header: Header) -> tuple[Any, ...]:
    made = tokenizer_of(header)
    return made.backend_tokenizer.to_str(), made.special_tokens_map, made.chat_template


def test_a_converted_tokenizer_reads_back_the_same(tmp_path: Path) -> None:
    from forward_influence.models.gguf.files import convert

    for number, keys in enumerate((byte_level("llama-bpe"), sentencepiece())):
        (tmp_path / str(number)).mkdir()
        path = written(tmp_path / str(number), keys)
        convert(path, tmp_path / f"out{number}")
        found, again = load_tokenizer(path), AutoTokenizer.from_pretrained(tmp_path / f"out{number}")
        for text in [*TEXTS, "a the<user> cab"]:
            assert ids(found, text) == ids(again, text)
    save_tiny(tmp_path / "plain")  # what the folder of a pulled model looks like is what transformers writes
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "out0").iterdir()} == names

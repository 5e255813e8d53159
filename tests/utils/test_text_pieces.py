"""Token ids as pieces of their text: joined they are the decoded text, and words are words, in every vocabulary."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import tiny_model
from tiny_data import Cut, Named
from transformers import PreTrainedTokenizerFast
from vocabularies import KINDS, vocabulary

from forward_influence.analysis.measures import token_classes
from forward_influence.execution.run import measure
from forward_influence.measurement.inspection import html_page, inspect_document
from forward_influence.measurement.leave_one_out import MapRequest, influence_map
from forward_influence.measurement.request import Request
from forward_influence.models.loading import wrap_model
from forward_influence.utils.tokenization import encode, text_pieces

HARD = "The keeper of the house doesn't  know:\n\nnaïve “women” 日本語 🎉🎉 e\u0301 12 men "
#: Words by hand, with what they are: f function, c content; what is no word says what it is itself.
BY_HAND = [
    ("The", "f"), ("keeper", "c"), ("of", "f"), ("the", "f"), ("house", "c"), ("doesn", "f"), ("'t", "f"),
    ("know", "c"), ("what", "f"), ("the", "f"), ("women", "c"), ("say", "c"), ("within", "f"), ("us", "f"),
    ("nobody", "f"), ("'s", "f"), ("walls", "c"), ("wrote", "c"), ("him", "f"), ("seen", "c"),
]  # fmt: skip
SENTENCE = "The keeper of the house doesn't know what the women say, within us; nobody's walls wrote him seen."


@pytest.mark.parametrize("kind", [*KINDS, "slow"])
def test_pieces_joined_are_the_decoded_text(kind: str) -> None:
    tokenizer = vocabulary(kind)
    rng = random.Random(0)
    texts = [encode(tokenizer, text) for text in (HARD, HARD * 30, "日本語" * 100, "", "a", "\n")]
    noise = [[rng.randrange(len(tokenizer)) for _ in range(rng.choice([1, 2, 5, 70, 200]))] for _ in range(60)]
    for ids in texts + noise:  # noise: bytes that are no character among it
        pieces = text_pieces(tokenizer, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_lie_where_the_tokenizer_says_that_its_tokens_lie(kind: str) -> None:
    """Offsets are the tokenizer's own account, made while cutting; pieces come from decoding."""
    tokenizer = vocabulary(kind)
    encoded = tokenizer(SENTENCE, add_special_tokens=False, return_offsets_mapping=True)
    pieces = text_pieces(tokenizer, encoded["input_ids"])
    assert len(pieces) > 20
    for piece, (start, stop) in zip(pieces, encoded["offset_mapping"], strict=True):
        if piece and "[UNK]" not in piece and "<unk>" not in piece:  # a space alone, at the beginning, is no text
            assert piece.strip() == SENTENCE[start:stop].strip()


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback", "gemma"])
def test_a_character_of_several_tokens_belongs_to_the_first(kind: str) -> None:
    tokenizer = vocabulary(kind)
    ids = encode(tokenizer, "naïve 日本 men")
    pieces = text_pieces(tokenizer, ids)
    at = pieces.index("日")
    assert pieces[at : at + 6] == ["日", "", "", "本", "", ""]
    assert pieces[pieces.index("ï") + 1] == ""
    cut = text_pieces(tokenizer, ids[: at + 5])  # within the second character
    assert "".join(cut) == tokenizer.decode(ids[: at + 5])
    assert "\ufffd" in "".join(cut)


def test_a_long_run_of_bytes_takes_no_quadratic_time() -> None:
    tokenizer = vocabulary("byte fallback")
    ids = encode(tokenizer, "日本語のテキスト" * 600)
    started = time.perf_counter()
    pieces = text_pieces(tokenizer, ids)
    assert time.perf_counter() - started < 10
    assert pieces[-6:] == ["ス", "", "", "ト", "", ""]


def test_without_a_tokenizer_the_pieces_are_ids() -> None:
    assert text_pieces(None, [7, 12]) == ["7 ", "12 "]


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "byte fallback", "gemma"])
def test_classes_are_those_of_the_words_however_they_are_cut(kind: str) -> None:
    tokenizer = vocabulary(kind)
    encoded = tokenizer(SENTENCE, add_special_tokens=False, return_offsets_mapping=True)
    pieces = text_pieces(tokenizer, encoded["input_ids"])
    classes, parts = token_classes.classes(pieces), token_classes.word_parts(pieces)
    spans, at = [], 0
    for word, letter in BY_HAND:
        start = SENTENCE.index(word, at)
        at = start + len(word)
        spans.append((start, at, {"f": "function word", "c": "content word"}[letter]))
    seen = set()
    for piece, (start, stop), found, part in zip(pieces, encoded["offset_mapping"], classes, parts, strict=True):
        if not piece:  # the space before the first word, which is no text
            continue
        first = start + len(SENTENCE[start:stop]) - len(SENTENCE[start:stop].lstrip())
        inside = [span for span in spans if span[0] < stop and span[1] > first]
        if not inside:
            assert found in ("punctuation", "space")
            continue
        assert found == inside[0][2], SENTENCE[start:stop]
        assert part == ("word start" if first <= inside[0][0] else "word continuation")
        seen.add(found)
    assert seen == {"function word", "content word"}


@pytest.mark.parametrize(
    ("pieces", "classes"),
    [
        ([" does", "n't"], "ff"),
        ([" doesn", "'", "t", " see"], "fffc"),
        (["Na", "ï", "", "ve", " É", "", "cole"], "ccccccc"),
        ([" 日", "", "", "。", "", ""], "cccppp"),
        (["<start_of_turn>", "user", "<｜end▁of▁sentence｜>", "[INST]"], "xcxx"),
        (["Ġ", "enn", " ▁"], "ccp"),  # letters and marks of the text itself, no markers of a vocabulary
        (["✊", "️", "", " he", "’", "d", " be"], "pppffff"),
    ],
)
def test_classes_of_pieces_of_all_kinds(pieces: list[str], classes: str) -> None:
    letters = {"f": "function word", "c": "content word", "p": "punctuation", "x": "special"}
    assert token_classes.classes(pieces).tolist() == [letters[c] for c in classes]


@pytest.fixture
def metaspace_model() -> tuple[object, list[int]]:
    tokenizer = vocabulary("metaspace")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model = tiny_model("llama", torch.float32, vocab_size=len(tokenizer))
    return wrap_model(model, tokenizer), encode(tokenizer, SENTENCE * 3)


def test_all_that_shows_tokens_shows_the_text(metaspace_model: tuple, tmp_path: Path) -> None:
    model, ids = metaspace_model
    count = len(ids) // 2
    one = Cut(Named("speech", "0" * 64), (torch.tensor(ids[: 2 * count]),))
    whole = model.tokenizer.decode(ids[:count])
    assert " of the house " in whole
    request = Request(
        selectors=("recent",), budgets=("0.2",), context=count, continuation=count, protect_first=1, protect_last=4,
        draws=1, save_selections=True,
    )  # fmt: skip
    found = inspect_document(model, one, request)
    assert "".join(found.pieces) == whole
    assert "> the<" in html_page(found, None, None)
    run = measure(model, [one], request, tmp_path / "run")
    with safe_open(next((tmp_path / "run").rglob("*.safetensors")), "pt") as file:
        assert "".join(json.loads(file.metadata()["pieces/0"])) == whole
    assert run.documents
    wanted = MapRequest(context=count, continuation=8, block=4, bin_width=8)
    frame = influence_map(model, torch.tensor(ids), wanted, tmp_path / "map.parquet")
    assert "".join(frame["text"]) == whole

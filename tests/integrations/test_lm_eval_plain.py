"""With the full cache our model of the harness is its own `hf` model: the same numbers, texts and refusals."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_writing import by_full_passes
from tiny import COMMON, tiny_model
from tiny_files import VOCABULARY, tiny_tokenizer

from forward_influence.errors import UsageError

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from forward_influence.integrations.lm_eval.model import CompressedModel

#: name -> (family, the tokenizer puts <s> before a text). The vocabulary merges line breaks, blanks and "the".
KINDS = {"plain": ("llama", False), "begins": ("llama", True), "windows": ("gemma3_text", True)}
#: A rotary embedding that depends on how much is read at once; `generate` itself mixes its factors.
LENGTHS = "lengths"
POSITIONS = 64
HALF = COMMON["hidden_size"] // COMMON["num_attention_heads"] // 2
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [1.5 + i for i in range(HALF)],
    "original_max_position_embeddings": POSITIONS // 4,
}
WORDS = ("the", " the", "t", "he", " ", "  ", "\n", "\n\n", "x", "tree", "é", "😀", "<s>", "</s>", "0", ".")


@lru_cache(maxsize=8)
def folder(kind: str) -> str:
    family, begins = KINDS.get(kind, ("llama", True))
    path = mkdtemp()
    model = tiny_model(family, torch.float32, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS)
    if kind == LENGTHS:
        config, weights = copy.deepcopy(model.config), model.state_dict()
        config.rope_parameters = ROPE
        model = type(model)(config)
        model.load_state_dict(weights)
    model.save_pretrained(path)
    tiny_tokenizer(begins).save_pretrained(path)
    return path


@lru_cache(maxsize=16)
def both(kind: str, max_length: int | None = None) -> tuple[Any, Any]:
    """The harness's and ours, in float64."""
    theirs = HFLM(pretrained=folder(kind), device="cpu", dtype="float64", batch_size=1, max_length=max_length)
    ours = CompressedModel(pretrained=folder(kind), device="cpu", dtype="float64", max_length=max_length)
    return theirs, ours


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments, doc={}, task_name="task")


def text(rng: random.Random, most: int, least: int = 0) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def tried(model: Any, ask: Callable[[], Any]) -> Any:
    """An answer, or that it was refused: by us in a line, by them with whatever comes."""
    refusals = (UsageError,) if isinstance(model, CompressedModel) else (AssertionError, IndexError, ValueError)
    try:
        return ask()
    except refusals:
        return "refused"
    except RuntimeError:
        return "broken"


def scores(model: Any, context: str, continuation: str) -> Any:
    return tried(model, lambda: model.loglikelihood([request(context, continuation)], disable_tqdm=True)[0])


def same(found: Any, wanted: Any) -> None:
    if "refused" in (found, wanted):
        assert found == wanted
    else:
        assert found[0] == pytest.approx(wanted[0], abs=1e-8)
        assert found[1] == wanted[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [None, 20])
def test_token_ids_are_the_harnesses(kind: str, max_length: int | None) -> None:
    theirs, ours = both(kind, max_length)
    assert ours.max_length == theirs.max_length == (max_length or POSITIONS)
    assert ours.prefix_token_id == theirs.prefix_token_id
    rng = random.Random(0)
    for _ in range(100):
        one = text(rng, 12)
        for special in (None, True, False):
            assert ours.tok_encode(one, add_special_tokens=special) == theirs.tok_encode(
                one, add_special_tokens=special
            )


@pytest.mark.parametrize("kind", [*KINDS, LENGTHS])
@pytest.mark.parametrize("max_length", [None, 20])
def test_log_likelihoods(kind: str, max_length: int | None) -> None:
    """Random pairs of any length: empty, joined inside a token, up to and beyond what can be read."""
    theirs, ours = both(kind, max_length)
    rng, kinds = random.Random(1), {"refused": 0, "scored": 0}
    for _ in range(120):
        pair = text(rng, rng.choice([2, 10, 90])), text(rng, rng.choice([2, 10, 90]))
        found, wanted = scores(ours, *pair), scores(theirs, *pair)
        kinds["refused" if wanted == "refused" else "scored"] += 1
        same(found, wanted)
    assert min(kinds.values()) > 10, kinds


@pytest.mark.parametrize("kind", ["plain", "begins"])
def test_the_corners_of_log_likelihoods(kind: str) -> None:
    theirs, ours = both(kind)
    begins = int(KINDS[kind][1])
    for context, continuation, refused in (
        ("", "x", False),
        ("", "", True),
        ("", "<s>x", False),
        ("", "<s>", True),
        ("x", "", True),
        ("th", "e", True),  # one token spans the join, so that none is the continuation's own
        ("t", "hey", False),
        ("x ", "y", False),
        ("  ", "y", not begins),
        ("x" * 200, "y" * (POSITIONS - 1), False),
        ("x" * 200, "y" * POSITIONS, False),
        ("x" * 200, "y" * (POSITIONS + 1), True),
        ("x" * POSITIONS, "y", False),
        ("x" * (POSITIONS + 1), "y", False),
    ):
        found = scores(ours, context, continuation)
        assert (found == "refused") is refused, (context[:5], continuation[:5])
        same(found, scores(theirs, context, continuation))


def test_greedy_continuations_are_told() -> None:
    theirs, ours = both("plain")
    context = ours.tok_encode("the tree")
    best = by_full_passes(ours.loaded.model, torch.tensor(context), 4)
    for continuation, greedy in ((best, True), ([*best[:3], best[3] ^ 1], False), ([best[0] ^ 1, *best[1:]], False)):
        asked = [(None, context, continuation)]
        found, wanted = (m._loglikelihood_tokens(asked, disable_tqdm=True)[0] for m in (ours, theirs))
        same(found, wanted)
        assert found[1] is greedy


def test_several_requests_keep_their_order() -> None:
    theirs, ours = both("begins")
    rng = random.Random(2)
    requests = [request("a " + text(rng, 30), "b" + text(rng, 3)) for _ in range(20)]
    found, wanted = (m.loglikelihood(requests, disable_tqdm=True) for m in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


@pytest.mark.parametrize("kind", [*KINDS, LENGTHS])
@pytest.mark.parametrize("max_length", [None, 20, 1])
def test_whole_texts(kind: str, max_length: int | None) -> None:
    """One window, several, a last one that is full of context, nothing at all."""
    theirs, ours = both(kind, max_length)
    rng = random.Random(3)
    size = max_length or POSITIONS
    texts = ["", "x", "y" * size, "y" * (size + 1), "z" * (3 * size), *(text(rng, 200) for _ in range(15))]
    requests = [request(one) for one in texts]
    found, wanted = (m.loglikelihood_rolling(requests, disable_tqdm=True) for m in (ours, theirs))
    assert found == pytest.approx(wanted, abs=1e-7)


def written(model: Any, context: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(7)
    return tried(model, lambda: model.generate_until([request(context, dict(settings))], disable_tqdm=True)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [None, 20])
def test_answers(kind: str, max_length: int | None) -> None:
    """Contexts of any length, ends of any kind: also such as take several tokens, or none of what is written."""
    theirs, ours = both(kind, max_length)
    rng = random.Random(4)
    for _ in range(40):
        context = text(rng, rng.choice([2, 10, 90]), least=1)
        settings: dict[str, Any] = {"max_gen_toks": rng.choice([1, 3, 12, 19])}
        free = written(theirs, context, {**settings, "until": []})
        assert written(ours, context, {**settings, "until": []}) == free
        for until in (free[2:3], [free[1:3]], [free[3:6], free[5:6]], ["never there"], ["</s>"], "\n\n"):
            until = [u for u in until if u] if isinstance(until, list) else until or []
            assert written(ours, context, {**settings, "until": until}) == written(
                theirs, context, {**settings, "until": until}
            )


def test_an_end_token_ends_an_answer() -> None:
    """Of the checkpoint's settings there may be several."""
    theirs, ours = both("plain")
    settings = {"max_gen_toks": 15, "until": []}
    free = by_full_passes(ours.loaded.model, torch.tensor(ours.tok_encode("the tree")), 15)
    assert written(ours, "the tree", settings) == ours.tokenizer.decode(free)
    for model in (theirs.model, ours.loaded.model):
        model.generation_config.eos_token_id = [2, free[4]]
    try:
        ended = written(ours, "the tree", settings)
        assert ended == written(theirs, "the tree", settings)
        assert ended == ours.tokenizer.decode(free[: free.index(free[4]) + 1])
    finally:
        for model in (theirs.model, ours.loaded.model):
            model.generation_config.eos_token_id = 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 5},
        {"max_tokens": 4},
        {"max_gen_toks": POSITIONS - 1},
        {"max_gen_toks": POSITIONS},
        {"max_gen_toks": 8, "max_length": 20},
        {"max_gen_toks": 8, "do_sample": False, "temperature": 0.7},
        {"max_gen_toks": 8, "temperature": 0.7},
        {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5},
        {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_k": 5, "top_p": 0.8},
        {"max_gen_toks": 8, "do_sample": True},
        {"max_gen_toks": 8, "do_sample": True, "temperature": 0},
        {"max_gen_toks": 8, "repetition_penalty": 3.0},
        {"max_gen_toks": 8, "no_repeat_ngram_size": 1, "suppress_tokens": [5, 6]},
        {"max_gen_toks": 8, "num_beams": 1},
        {"max_gen_toks": 8, "no_such_setting": 1},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()) or "none",
)
def test_what_a_task_asks_of_generation(settings: dict[str, Any]) -> None:
    """Asked for by a task it holds, whether greedy or sampled; 256 tokens are more than this model can be asked for."""
    theirs, ours = both("begins")
    for context in ("the tree stands", "x" * 90):
        found = written(ours, context, {"until": ["\n"], **settings})
        assert found == written(theirs, context, {"until": ["\n"], **settings})


def test_what_only_we_cannot_give_is_refused_by_name() -> None:
    _, ours = both("plain")
    for settings, name in (
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"output_scores": True}, "output_scores"),
    ):
        with pytest.raises(UsageError, match=name):
            ours.generate_until([request("x", {"max_gen_toks": 3, "until": [], **settings})], disable_tqdm=True)


def test_a_context_without_a_token_is_begun_with_the_prefix() -> None:
    """Where the harness's own model ends in an error of torch."""
    theirs, ours = both("plain")
    settings = {"max_gen_toks": 5, "until": []}
    assert written(theirs, "", settings) == "broken"
    assert written(ours, "", settings) == written(theirs, "<s>", settings)


def test_a_checkpoint_that_brings_settings_is_measured_without(tmp_path: Path) -> None:
    """The one thing in which we differ, and what it takes to have it: see docs/generation.md."""
    theirs, ours = both("plain")
    settings = {"max_gen_toks": 12, "until": []}
    neutral = written(ours, "the tree", settings)
    for model in (theirs.model, ours.loaded.model):
        model.generation_config.repetition_penalty = 4.0
    try:
        bent = written(theirs, "the tree", settings)
        assert written(ours, "the tree", settings) == neutral != bent
        assert written(ours, "the tree", {**settings, "repetition_penalty": 4.0}) == bent
    finally:
        for model in (theirs.model, ours.loaded.model):
            model.generation_config.repetition_penalty = None

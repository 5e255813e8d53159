"""A prompt is tokenised once: its parts together are its text's own ids, and the question is whole in its part."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_writing import by_full_passes
from tiny import tiny_model
from tiny_files import VOCABULARY, tiny_tokenizer
from tiny_tokenizer import TEMPLATE
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from forward_influence.data.tasks import parse_task
from forward_influence.errors import UsageError
from forward_influence.evaluation.plan import Plan
from forward_influence.evaluation.prompts import cut, make_prompt
from forward_influence.evaluation.run import evaluate
from forward_influence.models.loading import Model, wrap_model
from forward_influence.utils.tokenization import encode_around

BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())
PIECES = ("the", "t", "he", " ", "  ", "\n", "\n\n", "x", "é", "😀", "?", "</s>")


class Slow(PreTrainedTokenizerFast):
    """The same tokens without a word about where they come from."""

    @property
    def is_fast(self) -> bool:
        return False

    def __call__(self, *args: Any, **named: Any) -> Any:
        assert not named.get("return_offsets_mapping")
        return super().__call__(*args, **named)


def slow(begins: bool = False) -> Slow:
    made = tiny_tokenizer(begins)
    return Slow(tokenizer_object=made.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def joined(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, most)))


def texts(number: int = 300) -> list[tuple[str, str, str]]:
    """(before, question, after); joins fall into tokens more often than not."""
    rng = random.Random(0)
    found = [(joined(rng, 12), joined(rng, 6), joined(rng, 6)) for _ in range(number)]
    return [(before, question, after) for before, question, after in found if question.strip()]


def byte_lengths(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """How many bytes of the text each token stands for, from the vocabulary alone."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [len(t) if all(c in BYTES for c in t) else len(t.encode()) for t in tokens]


def smallest_cover(tokenizer: PreTrainedTokenizerFast, ids: list[int], before: str, question: str) -> tuple[int, int]:
    """The reference: bytes counted off token by token."""
    start = len((before + question[: len(question) - len(question.lstrip())]).encode())
    end = len((before + question.rstrip()).encode())
    places, at = [], 0
    for length in byte_lengths(tokenizer, ids):
        places.append((at, at + length))
        at += length
    inside = [i for i, (a, b) in enumerate(places) if a < end and b > start]
    return inside[0], inside[-1] + 1


def test_the_question_is_the_smallest_run_of_tokens_that_holds_it():
    tokenizer, split = tiny_tokenizer(), 0
    for before, question, after in texts():
        text = before + question + after
        ids, first, end = encode_around(tokenizer, text, len(before), len(before) + len(question))
        assert ids == tokenizer(text)["input_ids"]
        assert (first, end) == smallest_cover(tokenizer, ids, before, question)
        split += [i for part in (before, question, after) for i in tokenizer(part)["input_ids"]] != ids
    assert split > 40, "texts whose parts tokenise otherwise"


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_that_does_not_say_where_tokens_come_from(special: bool):
    """The same ids; the question is whole, with a token more at its ends where that cannot be told."""
    fast, other, equal = tiny_tokenizer(begin=True), slow(begins=True), 0
    for before, question, after in texts():
        text = before + question + after
        where = len(before), len(before) + len(question)
        ids, first, end = encode_around(other, text, *where, special=special)
        wanted, least_first, least_end = encode_around(fast, text, *where, special=special)
        assert ids == wanted == fast(text, add_special_tokens=special)["input_ids"]
        assert first <= least_first < least_end <= end
        equal += (first, end) == (least_first, least_end)
    assert equal > 0.7 * len(texts())


def test_there_is_always_something_to_read_from_the_compressed_cache():
    tokenizer = tiny_tokenizer()
    prompt = cut(tokenizer, "xx?", 1, 3)
    assert [len(part) for part in (prompt.context, prompt.question, prompt.lead)] == [1, 1, 1]
    prompt = cut(tokenizer, "xtheythex", 2, 6)  # "heyt" begins and ends inside tokens
    parts = (prompt.context, prompt.question, prompt.lead)
    assert [tokenizer.decode(part) for part in parts] == ["x", "theythe", "x"]
    prompt = cut(tokenizer, "x?\n\n\nx", 0, 3)  # a blank at its end need not be in it
    assert [tokenizer.decode(part) for part in (prompt.question, prompt.lead)] == ["x?", "\n\n\nx"]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_reads_what_its_text_has(chat: bool, begins: bool):
    tokenizer = tiny_tokenizer(begins)
    tokenizer.chat_template = TEMPLATE
    for context, question, prefix in texts(100):
        prompt = make_prompt(tokenizer, context, question, prefix, chat)
        if chat:
            message = [{"role": "user", "content": f"{context}\n\n{question}" + ("" if prefix else "\n")}]
            asked = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            wanted = tokenizer(asked + prefix, add_special_tokens=False)["input_ids"]
        else:
            wanted = tokenizer(f"{context}\n\n{question}\n{prefix}")["input_ids"]
        for protocol in ("seen", "unseen"):
            assert torch.cat(prompt.parts(protocol)).tolist() == wanted
        assert question.strip() in tokenizer.decode(prompt.question) + tokenizer.decode(prompt.lead)
        assert len(prompt.lead) >= 1


# --- the same prompt for evaluate, for plain generate, and for the harness ---


class Joins:
    """A task whose parts tokenise otherwise than its text: two line breaks are one token before nothing alone."""

    name = family = "joins"
    spec = "joins"
    reasons = paced = False
    answer_tokens = 10
    until = ()

    def __init__(self, prefix: str = "the answer") -> None:
        self.prefix = prefix

    def item(self, index: int, length: int, count: Any, seed: int = 0) -> SimpleNamespace:
        rng = random.Random(index)
        context = " ".join(rng.choice(["the tree", "x", "tthe", "é"]) for _ in range(40)) + index % 2 * "\n"
        question = "what is the tree?" + index % 2 * "\n"
        return SimpleNamespace(
            index=index, depth=None, context=context, question=question, answer_prefix=self.prefix, answers=("x",)
        )

    def score(self, item: Any, response: str) -> float:
        return 0.0


def loaded(chat: bool = False) -> Model:
    tokenizer = tiny_tokenizer()
    if chat:
        tokenizer.chat_template = TEMPLATE
    model = tiny_model("llama", torch.float64, vocab_size=VOCABULARY, max_position_embeddings=2048)
    return wrap_model(model, tokenizer, spec="tiny")


def prompt_text(task: Joins, index: int, tokenizer: PreTrainedTokenizerFast, chat: bool) -> str:
    item = task.item(index, 0, len)
    if not chat:
        return f"{item.context}\n\n{item.question}\n{item.answer_prefix}"
    message = [{"role": "user", "content": f"{item.context}\n\n{item.question}"}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) + item.answer_prefix


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("chat", [False, True])
def test_the_full_cache_answers_as_plain_passes_over_the_text(tmp_path: Path, chat: bool, every: int | None):
    model, task = loaded(chat), Joins()
    plan = Plan(tasks=(task,), compressors=("full",), budgets=(), items=3, every=every, lengths=(500,))
    frame = evaluate(model, plan, tmp_path / "e").frame()
    for row in frame.to_dict("records"):
        ids = model.tokenizer(prompt_text(task, row["item"], model.tokenizer, chat), add_special_tokens=False)
        ids = torch.tensor(ids["input_ids"])
        assert row["context_tokens"] + row["question_tokens"] == len(ids)
        written = by_full_passes(model.model, ids, 10)
        assert row["response"] == model.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("protocol", ["seen", "unseen"])
@pytest.mark.parametrize(
    "spec", ["needle:kind=number,digits=2", "facts:people=1", "reasoning-cot"]
)  # the last has no words that lead to its answer
def test_evaluate_and_the_harness_compress_the_same(tmp_path: Path, spec: str, protocol: str, every: int | None):
    """One definition of seen and unseen: the same entries held, the same answers."""
    pytest.importorskip("lm_eval")
    if spec.startswith("reasoning"):
        pytest.importorskip("reasoning_gym")
    from forward_influence.integrations.lm_eval.model import CompressedModel

    model, task = loaded(), parse_task(spec)
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    plan = Plan(
        tasks=(task,),
        compressors=("attention",),
        budgets=("0.3",),
        items=2,
        lengths=(900,),
        protocol=protocol,
        every=every,
        keep_prompt="own",
    )
    frame = evaluate(model, plan, tmp_path / "e").frame().query("compressor == 'attention'")
    harness = CompressedModel(
        pretrained=str(tmp_path / "model"),
        compressor="attention",
        budget=0.3,
        protocol=protocol,
        every=every,
        device="cpu",
        dtype="float64",
    )
    for row in frame.to_dict("records"):
        item = task.item(row["item"], 900, lambda text: len(model.tokenizer(text)["input_ids"]))
        text = f"{item.context}\n\n{item.question}\n{item.answer_prefix}"
        settings = {"max_gen_toks": task.answer_tokens, "until": list(task.until)}
        asked = SimpleNamespace(args=(text, settings), doc=item.as_dict())
        assert harness.generate_until([asked], disable_tqdm=True) == [row["response"]]


def test_what_the_harness_compresses(tmp_path: Path):
    """The question's end is told by our own documents, by a field that is named, or not at all."""
    pytest.importorskip("lm_eval")
    from forward_influence.integrations.lm_eval.reading import request_prompt

    tokenizer = tiny_tokenizer()
    text = "Context. What is it?\nAnswer:"
    own = {"question": "What is it?", "answer_prefix": "Answer:"}
    foreign = {"question": "What is it?", "query": "it?"}

    def parts(document: Any, protocol: str, field: str | None = None) -> tuple[str, str]:
        found = request_prompt(tokenizer, text, document, protocol, field).parts(protocol)
        return tuple(tokenizer.decode(part) for part in found)

    assert parts(own, "seen") == ("Context. What is it?", "\nAnswer:")
    assert parts(own, "unseen") == ("Context. ", "What is it?\nAnswer:")
    assert parts(foreign, "seen") == ("Context. What is it?\nAnswer", ":")
    assert parts(foreign, "seen", "question") == ("Context. What is it?", "\nAnswer:")
    assert parts(foreign, "unseen") == ("Context. ", "What is it?\nAnswer:")
    assert parts(foreign, "unseen", "query") == ("Context. What is ", "it?\nAnswer:")
    assert parts({}, "seen") == parts("no mapping", "seen") == ("Context. What is it?\nAnswer", ":")
    for document, protocol, field in (({}, "unseen", None), (own, "seen", "query"), ({"question": ""}, "unseen", None)):
        with pytest.raises(UsageError, match="does not hold its document's"):
            parts(document, protocol, field)
    with pytest.raises(UsageError, match="after a context"):
        parts({"question": "Context."}, "unseen")

"""Several sequences in one batch: every row is what it would be alone, and one that has ended costs nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import tiny_family
from float64 import Float64
from test_compression import CASES
from tiny import FAMILIES, tiny_model
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from visible_sets import full_pass, prompt

from forward_influence.compression import Stats, compress, compressor_names, make_compressor
from forward_influence.errors import UsageError
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.forward import next_logits, run

LENGTHS, NEW, EVERY, LAST = (70, 55, 63), 46, 10, 8


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    return [prompt(n, seed=i + 1)[0] for i, n in enumerate(lengths)]


def padded(rows: list[Tensor], fill: int = 0) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def logits_of(model: Any) -> Any:
    """The last logits (rows, vocabulary) of every pass, in the model's own dtype."""
    found: list[Tensor] = []
    handle = model.register_forward_hook(lambda m, a, output: found.append(output.logits[:, -1].clone()))
    try:
        yield found
    finally:
        handle.remove()


def written(model: Any, rows: list[Tensor], compressed: dict[str, Any], **settings: Any) -> tuple[Tensor, Tensor, Any]:
    """Tokens written (rows, new), logits (rows, new, vocabulary), and what was held."""
    asked = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **settings}
    batch = padded(rows)
    with compress(model, **compressed) as cache, logits_of(model) as logits:
        out = model.generate(**batch, past_key_values=cache, **asked)
    return out[:, batch["input_ids"].shape[1] :], torch.stack(logits, 1), cache.row_stats


def same(one: Stats, other: Stats) -> None:
    """Held alike, at every compression."""
    assert [(e.seen, e.held.tolist(), e.ends) for e in one.events] == [
        (e.seen, e.held.tolist(), e.ends) for e in other.events
    ]
    for a, b in zip(one.positions, other.positions, strict=True):
        assert a.tolist() == b.tolist()
    assert (one.prompt, one.seen, one.full_bytes, one.remarks) == (
        other.prompt,
        other.seen,
        other.full_bytes,
        other.remarks,
    )


def check_rows_alone(family: str, name: str, scheme: str | None, lengths: tuple[int, ...] = LENGTHS) -> None:
    model, rows = (tiny_model if family in FAMILIES else tiny_family)(family), texts(lengths)
    once = make_compressor(name).needs.whole  # reads the prompt again, which it compresses once
    compressed = {"rule": name, "budget": 0.4, "every": None if once else EVERY, "protect_last": LAST, "scheme": scheme}
    tokens, logits, stats = written(model, rows, compressed)
    for i, row in enumerate(rows):
        alone, wanted, (held,) = written(model, [row], compressed)
        torch.testing.assert_close(logits[i], wanted[0], atol=1e-9, rtol=0)
        assert tokens[i].tolist() == alone[0].tolist()
        same(stats[i], held)
        assert held.compressions == 1 if once else held.compressions >= 4


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_every_row_is_what_it_is_alone(name: str, scheme: str | None) -> None:
    """Prompts of different lengths, padded on the left, through four compressions and more, in float64."""
    check_rows_alone("llama", name, scheme)


_TRIED = {name.split(":")[0] for name, _ in CASES} | {"full", "oracle"}
_SPECS = {
    "product": "product:attention*entropy",
    "kvzip": "kvzip:asked=false",
    "kvzip-plus": "kvzip-plus:asked=false",
}


@pytest.mark.parametrize("name", [name for name in compressor_names() if name not in _TRIED])
def test_every_other_compressor(name: str) -> None:
    check_rows_alone("llama", _SPECS.get(name, name), None)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt_neox", "phi3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("name", ["infokv", "adakv"])
def test_other_architectures(family: str, name: str) -> None:
    """Sliding windows, soft-capping and attention sinks among them."""
    check_rows_alone(family, name, None)


def test_no_prompt_as_long_as_the_batch_is_wide() -> None:
    """All rows are padded: what nobody sees must not become NaN, nor be counted."""
    model, rows = tiny_model("gemma3_text"), texts((40, 31))
    wide = padded([*rows, texts((52,))[0]])
    ids, mask = wide["input_ids"][:2], wide["attention_mask"][:2]
    with compress(model, "infokv", budget=0.4, every=EVERY, protect_last=LAST) as cache, logits_of(model) as logits:
        model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=30, min_new_tokens=30)
    for i, row in enumerate(rows):
        compressed = {"rule": "infokv", "budget": 0.4, "every": EVERY, "protect_last": LAST}
        _, wanted, (held,) = written(model, [row], compressed, max_new_tokens=30, min_new_tokens=30)
        torch.testing.assert_close(torch.stack(logits, 1)[i], wanted[0], atol=1e-9, rtol=0)
        same(cache.row_stats[i], held)


def test_one_padded_sequence() -> None:
    model, (row,) = tiny_model("llama"), texts((50,))
    mask = torch.cat([torch.zeros(1, 9, dtype=torch.int64), torch.ones(1, 50, dtype=torch.int64)], 1)
    ids = torch.cat([torch.zeros(1, 9, dtype=torch.int64), row[None]], 1)
    with compress(model, "infokv", budget=0.4, every=EVERY) as cache:
        out = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=20, min_new_tokens=20)
    alone, _, (held,) = written(
        model, [row], {"rule": "infokv", "budget": 0.4, "every": EVERY}, max_new_tokens=20, min_new_tokens=20
    )
    assert out[0, 59:].tolist() == alone[0].tolist()
    same(cache.stats, held)


def test_long_prompts_are_read_in_chunks_some_of_which_only_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forward_influence.compression.passes.CHUNK", 16)
    for family in ("llama", "gemma3_text"):
        check_rows_alone(family, "infokv", "heads", (70, 21, 54))


def test_nothing_compressed_is_plain_generate() -> None:
    """The reference is transformers' own cache, with its own masks for padding and windows."""
    for family in ("llama", "gemma3_text"):
        model, batch = tiny_model(family), padded(texts())
        plain = model.generate(**batch, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        with compress(model, "full") as cache:
            ours = model.generate(**batch, past_key_values=cache, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert ours.tolist() == plain.tolist()


def test_a_compressor_for_every_row() -> None:
    """Budgets, rules, schedules and seeds of their own."""
    model, rows = tiny_model("llama"), texts()
    compressors = [
        make_compressor("infokv", 0.3, every=7, protect_last=LAST),
        make_compressor("h2o", 20, every=13),
        make_compressor("random", 0.5, prefill=False, every=9, protect_last=4),
    ]
    tokens, logits, stats = written(model, rows, {"rule": compressors, "seed": [0, 1, 5]})
    for i, (row, compressor) in enumerate(zip(rows, compressors, strict=True)):
        _, wanted, (held,) = written(model, [row], {"rule": compressor, "seed": [0, 1, 5][i]})
        torch.testing.assert_close(logits[i], wanted[0], atol=1e-9, rtol=0)
        same(stats[i], held)
    assert [s.compressions for s in stats] == [7, 4, 5]
    assert len({tuple(t) for t in tokens.tolist()}) == 3


class _Ends(LogitsProcessor):
    """Makes each row write the end token (2) as its n-th."""

    def __init__(self, after: list[int]) -> None:
        self._after, self._step = after, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._step += 1
        scores[:, 2] = float("-inf")
        for row, n in enumerate(self._after):
            if self._step == n:
                scores[row] = float("-inf")
                scores[row, 2] = 0
        return scores


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("by", ["token", "criterion"])
def test_a_row_that_has_ended_costs_nothing_more(family: str, by: str) -> None:
    """No pass computes anything for it; the others go on as if alone."""
    model, rows, after = tiny_model(family), texts(), [12, 40, 25]
    compressed = {"rule": "infokv", "budget": 0.4, "every": EVERY, "protect_last": LAST}
    widths: list[int] = []
    handle = backbone(model).layers[0].register_forward_hook(lambda m, a, o: widths.append(len(a[0])))

    def stop(input_ids: Tensor, scores: Tensor, **others: Any) -> Tensor:
        return input_ids[:, -1] == 2

    settings: dict[str, Any] = {"min_new_tokens": None, "logits_processor": LogitsProcessorList([_Ends(after)])}
    if by == "criterion":
        settings |= {"eos_token_id": None, "stopping_criteria": StoppingCriteriaList([stop]), "pad_token_id": 0}
        settings["generation_config"] = GenerationConfig(do_sample=False)
    try:
        tokens, logits, stats = written(model, rows, compressed, **settings)
    finally:
        handle.remove()
    assert widths == [3] * 12 + [2] * 13 + [1] * 15
    for i, (row, n) in enumerate(zip(rows, after, strict=True)):
        settings["logits_processor"] = LogitsProcessorList([_Ends([n])])
        alone, wanted, (held,) = written(model, [row], compressed, **settings)
        assert tokens[i, :n].tolist() == alone[0].tolist()
        assert tokens[i, n:].unique().tolist() in ([], [0])
        torch.testing.assert_close(logits[i, :n], wanted[0], atol=1e-9, rtol=0)
        same(stats[i], held)


def test_several_answers_to_a_prompt() -> None:
    """num_return_sequences: the same draws as with transformers' own cache where nothing is compressed."""
    model = tiny_model("llama")
    asked = {**padded(texts((30, 22))), "max_new_tokens": 24, "min_new_tokens": 24, "num_return_sequences": 3}
    asked |= {"do_sample": True, "temperature": 1.3}
    torch.manual_seed(4)
    plain = model.generate(**asked)
    torch.manual_seed(4)
    with compress(model, "full") as cache:
        assert model.generate(**asked, past_key_values=cache).tolist() == plain.tolist()
    torch.manual_seed(4)
    with compress(model, "infokv", budget=12, every=8, protect_last=4) as cache:
        out = model.generate(**asked, past_key_values=cache)
    assert len({tuple(row) for row in out[:, 30:].tolist()}) == 6
    assert [s.events[0].held.unique().tolist() for s in cache.row_stats] == [[12]] * 6
    assert len({str([p.tolist() for p in s.positions]) for s in cache.row_stats}) == 6


def test_read_one_by_one_and_joined() -> None:
    """Contexts and questions of different lengths, each compressed before its question is read; then side by side."""
    for family in ("llama", "gemma3_text"):
        model, contexts, questions = tiny_model(family), texts((60, 41)), texts((3, 12))
        compressor = make_compressor("infokv", 0.4, every=EVERY, protect_last=LAST)
        with torch.no_grad(), compress(model, [compressor, compressor]) as cache:
            first = []
            for context, question, own in zip(contexts, questions, cache.apart(), strict=True):
                run(backbone(model), context[None], own)
                first.append(next_logits(model, question[None], own)[0])
            cache.join()
            logits = [torch.stack(first)]
            for _ in range(30):
                logits.append(next_logits(model, logits[-1].argmax(-1)[:, None], cache))
        for i, (context, question) in enumerate(zip(contexts, questions, strict=True)):
            with torch.no_grad(), compress(model, compressor) as alone:
                run(backbone(model), context[None], alone)
                wanted = [next_logits(model, question[None], alone)]
                for _ in range(30):
                    wanted.append(next_logits(model, wanted[-1].argmax(-1)[:, None], alone))
            torch.testing.assert_close(torch.stack(logits, 1)[i], torch.cat(wanted), atol=1e-9, rtol=0)
            same(cache.row_stats[i], alone.stats)


def test_questions_of_different_lengths_in_one_pass() -> None:
    """Padding between what is held and what comes closes up; the judge is a full pass over each row alone."""
    model, contexts, questions = tiny_model("llama"), texts((60, 41)), texts((3, 12))
    with torch.no_grad(), compress(model, "full") as cache:
        run(backbone(model), padded(contexts)["input_ids"], cache, attention_mask=padded(contexts)["attention_mask"])
        batch = padded(questions)
        mask = torch.cat([padded(contexts)["attention_mask"], batch["attention_mask"]], 1)
        logits = model(batch["input_ids"], attention_mask=mask, past_key_values=cache).logits
    for i, (context, question) in enumerate(zip(contexts, questions, strict=True)):
        wanted = full_pass(model, torch.cat([context, question])).logits[-len(question) :]
        torch.testing.assert_close(logits[i, -len(question) :], wanted, atol=1e-9, rtol=0)


def test_the_memory_of_rows_that_left_is_given_up() -> None:
    model = tiny_model("llama")
    with torch.no_grad(), compress(model, "infokv", budget=0.5, every=EVERY) as cache:
        model(**padded(texts()), past_key_values=cache)
        before, stats = cache.bytes(), cache.row_stats
        cache.leave([0, 2])
        assert cache.bytes() < 0.5 * before
        model(prompt(1), past_key_values=cache)
    same(cache.row_stats[0], stats[0])
    assert [s.seen for s in cache.row_stats] == [70, 56, 63]


def test_what_a_batch_cannot_do_is_said_in_one_line() -> None:
    model, batch = tiny_model("llama"), padded(texts())
    asked = {"max_new_tokens": 3}
    with compress(model, "attention", budget=0.5) as cache:
        with pytest.raises(UsageError, match="pad on the left"):
            model.generate(batch["input_ids"], attention_mask=batch["attention_mask"].flip(1), past_key_values=cache)
        with pytest.raises(UsageError, match=r"^num_beams=2 .* each holds entries of its own"):
            model.generate(**batch, past_key_values=cache, num_beams=2)
        model.generate(**batch, past_key_values=cache, **asked)
        with pytest.raises(UsageError, match="row_stats"):
            _ = cache.stats
        with pytest.raises(UsageError, match="2 sequences came, and this cache holds 3"), torch.no_grad():
            model(prompt(1).repeat(2, 1), past_key_values=cache)
    with compress(model, "attention", budget=0.5) as cache:
        ended = LogitsProcessorList([_Ends([2, 9, 9])])
        model.generate(**batch, past_key_values=cache, max_new_tokens=5, logits_processor=ended)
        with pytest.raises(UsageError, match="1 of 3 sequences have ended"):
            model.generate(**batch, past_key_values=cache, **asked)
    with (
        compress(model, [make_compressor("full")] * 2) as cache,
        pytest.raises(UsageError, match="3 sequences came, and there are compressors for 2"),
    ):
        model.generate(**batch, past_key_values=cache, **asked)
    empty = {**batch, "attention_mask": batch["attention_mask"].clone()}
    empty["attention_mask"][1] = 0
    with compress(model, "full") as cache, pytest.raises(UsageError, match="empty"):
        model.generate(**empty, past_key_values=cache, **asked)
    windows = tiny_model("gemma3_text")
    with torch.no_grad(), compress(windows, "full") as cache:
        windows(**batch, past_key_values=cache)
        question = padded(texts((3, 5, 4)))
        with pytest.raises(UsageError, match="equally long each time"):
            windows(**question, past_key_values=cache)


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v32", "gemma3n_text"])
def test_layers_that_hold_more_than_entries_are_refused_in_a_batch(family: str) -> None:
    """States, index keys, entries that another layer holds; one sequence goes on as before."""
    model, batch = tiny_family(family), padded(texts((30, 22)))
    with (
        compress(model, "full") as cache,
        pytest.raises(UsageError, match=r"^sequences of a model with \w+ cannot run side by side; run them one by"),
    ):
        model.generate(**batch, past_key_values=cache, max_new_tokens=2)
    with compress(model, "full") as cache:
        model.generate(texts((30,))[0][None], past_key_values=cache, max_new_tokens=2)
    assert cache.stats.seen >= 30


@pytest.mark.parametrize("family", ["minicpm3", "deepseek_v3"])
def test_latent_attention_in_a_batch(family: str) -> None:
    """Keys and values of different widths."""
    with Float64():
        check_rows_alone(family, "infokv", None)

"""Evaluation: side by side is the same as one by one, parts are resumed, items are paired, tables say what they are."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from float64 import Float64
from plain_writing import by_full_passes
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from typer.testing import CliRunner

from forward_influence.analysis.measures.accuracy import (
    accuracy_interval,
    accuracy_table,
    paired_difference,
    paper_layout,
)
from forward_influence.compression import compress
from forward_influence.compression.contenders import Contender, contenders, needs_of
from forward_influence.data.tasks import parse_task
from forward_influence.errors import ForwardInfluenceError, UsageError
from forward_influence.evaluation.answering import Asking, answer_side_by_side, answer_while_compressing
from forward_influence.evaluation.decoding import continued_apart, grouped
from forward_influence.evaluation.plan import Plan
from forward_influence.evaluation.run import evaluate
from forward_influence.instrument.batch import stack
from forward_influence.instrument.instrument import Instrument
from forward_influence.instrument.rotary_span import pinned
from forward_influence.models.loading import Model, wrap_model
from forward_influence.storage.evaluation import SCHEMA, create_or_continue, open_evaluation, part_stem
from forward_influence.tracing.recorder import record

RULES = ("attention", "infokv", "h2o", "pyramid", "expected-attention", "streaming", "tova", "random")


@lru_cache(maxsize=8)
def loaded(family: str = "llama", dtype: torch.dtype = torch.float64, chat: bool = False) -> Model:
    model = tiny_model(family, dtype, vocab_size=VOCABULARY, max_position_embeddings=2048)
    return wrap_model(model, byte_tokenizer(chat), spec=f"tiny-{family}")


def plan(**changes) -> Plan:
    settings = {
        "tasks": (parse_task("needle:kind=number,digits=2"), parse_task("facts:people=1")),
        "compressors": ("attention", "random"),
        "budgets": ("0.5", "0.25"),
        "lengths": (600,),
        "items": 2,
    }
    return Plan(**{**settings, **changes})


def random_tokens(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (number,), generator=torch.Generator().manual_seed(seed))


# --- side by side ---


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gemma3_text"])
def test_side_by_side_gives_what_generate_gives_from_each_cache_alone(family: str) -> None:
    """The reference is transformers' own `generate`, one cache at a time."""
    model = loaded(family)
    context, question = random_tokens(150), random_tokens(9, 1)
    chosen = contenders(RULES, ("0.5", "0.2"))
    trace = record(model, context, needs_of(chosen), span=200)
    keeps = [c.keep(trace, 3) for c in chosen]
    together = continued_apart(model, [trace.cache.branch(k, 0) for k in keeps], question, 12, lambda tokens: False)
    everything = torch.cat([context, question])[None]
    for keep, tokens in zip(keeps, together, strict=True):
        cache = trace.cache.branch(keep, 64)
        with Instrument(model.model, cache=cache):
            alone = model.model.generate(
                everything,
                attention_mask=torch.ones_like(everything),
                past_key_values=cache,
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=VOCABULARY + 1,
            )
        assert tokens == alone[0, 159:].tolist()
    if family != "gemma3_text":  # whose random weights repeat one token whatever the cache holds
        assert len({tuple(t) for t in together}) > 3


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text"])
def test_logits_side_by_side_equal_those_of_each_cache_alone(family: str) -> None:
    model = loaded(family)
    context, question = random_tokens(120), random_tokens(7, 1)
    chosen = contenders(("attention", "random", "pyramid:window=4"), ("0.5", "30"))
    trace = record(model, context, needs_of(chosen), span=200)
    keeps = [c.keep(trace) for c in chosen]
    # heads that hold unequal numbers, which are padded
    uneven = torch.zeros(trace.shape, dtype=torch.bool)
    uneven[:, 0, :60], uneven[:, 1, 100:] = True, True
    keeps.append(uneven)
    batch = stack([trace.cache.branch(k, 0) for k in keeps])
    with torch.no_grad(), Instrument(model.model, cache=batch):
        together = model.model(question.expand(len(keeps), -1), past_key_values=batch).logits
    for keep, logits in zip(keeps, together, strict=True):
        cache = trace.cache.branch(keep, len(question))
        with torch.no_grad(), Instrument(model.model, cache=cache):
            alone = model.model(question[None], past_key_values=cache).logits[0]
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("every", [None, 3])
def test_answers_of_a_model_whose_rotary_factors_depend_on_length(every: int | None) -> None:
    """Every step has the factors of context, question and answer together; the reference is whole passes with those."""
    plain = tiny_model("llama", vocab_size=VOCABULARY)
    config, weights = copy.deepcopy(plain.config), plain.state_dict()
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.5, 3.5, 4.5],
        "original_max_position_embeddings": 60,
    }
    changed = type(plain)(config).double()
    changed.load_state_dict(weights)
    model = wrap_model(changed, byte_tokenizer())
    context, question = random_tokens(50), random_tokens(6, 1)
    span = 50 + 6 + 12  # the border lies between the question's end and the answer's
    with pinned(model.model, span):
        wanted = by_full_passes(model.model, torch.cat([context, question]), 12)
    if every is None:
        cache = record(model, context, span=span).cache.branch(None, 0)
        (answer,) = continued_apart(model, [cache], question, 12, lambda tokens: False)
        assert answer == wanted
    else:
        full = Contender("full", "1.0", every=every).compressor
        (grown,) = answer_while_compressing(model, [Asking(full, context, question)], 12, ())
        assert grown.answer.text == model.tokenizer.decode(wanted, skip_special_tokens=True)


def test_answers_end_where_they_are_finished() -> None:
    model = loaded()
    trace = record(model, random_tokens(80), span=100)
    caches = [trace.cache.branch(None, 0) for _ in range(2)]
    free = continued_apart(model, caches, random_tokens(3, 1), 8, lambda tokens: False)[0]
    stop = free[2]
    caches = [trace.cache.branch(None, 0)]
    ended = continued_apart(model, caches, random_tokens(3, 1), 8, lambda tokens: tokens[-1] == stop)[0]
    assert ended == free[: free.index(stop) + 1]


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "gpt_oss"])
def test_no_answer_depends_on_the_batch(family: str, every: int | None, tmp_path: Path) -> None:
    """In float64; soft-capping, sinks and sliding windows, too. The answers, and what was held for each."""
    model, found = loaded(family), {}
    for batch in (1, 2, None):
        made = plan(
            tasks=(parse_task("facts:people=1"),),
            compressors=("infokv", "h2o", "random"),
            budgets=("0.3",),
            lengths=(300,),
            items=1,
            protocol="unseen",
            every=every,
            batch=batch,
            keep_prompt="own",
        )
        with Float64():
            frame = evaluate(model, made, tmp_path / f"{batch}").frame()
        assert frame["streams"].max() == (batch or (4 if every is None else 5))
        columns = ["task", "protocol", "compressor", "response", "new_tokens", "held", "held_most", "chosen", "grain"]
        found[batch] = frame[columns]
    pd.testing.assert_frame_equal(found[1], found[2])
    pd.testing.assert_frame_equal(found[1], found[None])


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="`batch` 0"):
        plan(batch=0)


def test_groups_stay_within_bytes_and_lose_none() -> None:
    assert list(grouped([5, 1, 1, 9], 6)) == [[1, 2], [0], [3]]
    assert list(grouped([1] * 5, 6, most=2)) == [[0, 1], [2, 3], [4]]
    assert sorted(i for g in grouped([3] * 10, 7) for i in g) == list(range(10))


# --- what is kept ---


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", ["0.4", "0.1", "0.02", "3", "1"])
def test_held_is_what_the_budget_says(rule: str, budget: str) -> None:
    trace = record(loaded(), random_tokens(200), needs_of([Contender(rule, budget)]), span=200)
    keep = Contender(rule, budget).keep(trace)
    wanted = {"0.4": 80, "0.1": 20, "0.02": 4, "3": 3, "1": 1}[budget]
    assert keep.sum().item() == wanted * trace.shape[0] * trace.shape[1]
    if rule != "pyramid":
        assert (keep.sum(-1) == wanted).all()
    assert keep[..., -1].all()


def test_everything_kept_is_the_full_cache() -> None:
    trace = record(loaded(), random_tokens(50), span=50)
    assert Contender("full", "1.0").keep(trace) is None
    assert Contender("random", "1.0").keep(trace) is None
    assert Contender("random", "500").keep(trace) is None


def test_a_rule_does_not_depend_on_which_budgets_went_before() -> None:
    trace = record(loaded(), random_tokens(150), needs_of([Contender("infokv", "0.4")]), span=150)
    fresh = record(loaded(), random_tokens(150), needs_of([Contender("infokv", "0.4")]), span=150)
    Contender("infokv", "0.4").keep(trace)
    assert torch.equal(Contender("infokv", "0.1").keep(trace), Contender("infokv", "0.1").keep(fresh))


@pytest.mark.parametrize("name", [*RULES, "pyramidkv:window=4", "adakv", "snapkv"])
@pytest.mark.parametrize("budget", ["0.5", "0.2", "17"])
def test_what_is_kept_is_what_the_compressor_holds_in_generation(name: str, budget: str) -> None:
    """The shared recorded pass and `compress` around the model choose the same entries."""
    model, context = loaded(), random_tokens(140)
    contender = Contender(name, budget)
    trace = record(model, context, needs_of([contender]), span=160)
    branch = trace.cache.branch(contender.keep(trace, 5), 0)
    with torch.no_grad(), compress(model, contender.compressor, seed=5, span=160) as cache:
        model.model.base_model(context[None], past_key_values=cache, use_cache=True)
        for mine, theirs in zip(branch.layers, cache.layers, strict=True):
            assert torch.equal(mine.positions(), theirs.positions())


def test_an_answer_while_compressing_with_the_full_cache_is_the_plain_answer() -> None:
    model, context, question = loaded(), random_tokens(90), random_tokens(5, 1)
    full = Contender("full", "1.0", every=4).compressor
    (grown,) = answer_while_compressing(model, [Asking(full, context, question)], 10, ())
    trace = record(model, context, span=120)
    (plain,) = answer_side_by_side(model, [trace.cache.branch(None, 0)], question, 10, ())
    assert grown.answer.text == plain.text
    assert grown.outcome.held == grown.outcome.most == 90 + 5 + 10 - 1
    assert grown.outcome.chosen == 0
    assert grown.bytes >= grown.full_bytes


def test_compressing_as_the_answer_grows(tmp_path: Path) -> None:
    made = plan(every=4, items=1, compressors=("attention", "random-protected"), budgets=("0.25",), keep_prompt="own")
    frame = evaluate(loaded(dtype=torch.float32), made, tmp_path / "e").frame()
    frame = frame[frame["task"] == made.tasks[0].spec]
    assert (frame["every"] == 4).all()
    seen = frame["context_tokens"] + frame["question_tokens"] + frame["new_tokens"]
    held = frame.set_index("compressor")["held"]
    full = frame["compressor"] == "full"
    assert (seen[full] - frame["held"][full] <= 1).all()
    assert held["attention"].max() < 0.25 * seen.max() + 10
    assert (held["random-protected"] >= frame.set_index("compressor")["context_tokens"]["random-protected"]).all()


# --- the folder ---


def test_results_have_every_item_and_contender_once(tmp_path: Path) -> None:
    frame = evaluate(loaded(), plan(), tmp_path / "e").frame()
    assert list(frame.columns) == SCHEMA.names
    assert len(frame) == 2 * 2 * 2 * (1 + 2 * 2)
    assert not frame.duplicated(["task", "length", "protocol", "item", "compressor", "budget"]).any()
    full = frame[frame["compressor"] == "full"]
    assert (full["cache_bytes"] == full["full_bytes"]).all()
    half = frame[frame["budget"] == "0.5"]
    assert ((half["cache_bytes"] / half["full_bytes"]) <= 0.5).all()
    assert ((half["held"] - 0.5 * half["context_tokens"]).abs() < 1).all()
    assert frame["score"].between(0, 1).all()


def test_both_protocols_read_the_same_tokens_and_the_question_is_compressed_in_one(tmp_path: Path) -> None:
    model = loaded(chat=True)
    frame = evaluate(model, plan(compressors=("streaming",)), tmp_path / "e").frame()
    full = frame[frame["compressor"] == "full"].pivot(index=["task", "item"], columns="protocol")
    read = full["context_tokens"] + full["question_tokens"]
    assert (read["seen"] == read["unseen"]).all()
    assert (full["context_tokens"]["seen"] > full["context_tokens"]["unseen"]).all()
    assert (full["question_tokens"]["seen"] >= 1).all()
    assert (full["response"]["seen"] == full["response"]["unseen"]).all()  # nothing is lost from a full cache
    assert open_evaluation(tmp_path / "e").configuration["chat"] is True


def test_running_again_continues_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import forward_influence.evaluation.run as module

    folder, calls = tmp_path / "e", []
    whole = evaluate(loaded(), plan(), folder).frame()
    real = module.answer_item
    monkeypatch.setattr(module, "answer_item", lambda *a: (calls.append(a[2].stem), real(*a))[1])
    parts = sorted((folder / "parts").glob("*.parquet"))
    (folder / "results.parquet").unlink()
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-20])  # torn
    again = evaluate(loaded(), plan(), folder).frame()
    assert sorted(calls) == sorted(p.stem for p in parts[:2])
    results = ["task", "protocol", "item", "compressor", "budget", "score", "response", "held", "cache_bytes"]
    pd.testing.assert_frame_equal(whole[results], again[results])


def test_shards_together_give_what_one_process_gives(tmp_path: Path) -> None:
    alone = evaluate(loaded(), plan(), tmp_path / "a").frame()
    first = evaluate(loaded(), plan(), tmp_path / "b", shard=(0, 2))
    assert not (tmp_path / "b" / "results.parquet").exists()
    assert len(first.frame()) == len(alone) / 2
    both = evaluate(loaded(), plan(), tmp_path / "b", shard=(1, 2)).frame()
    columns = ["task", "protocol", "item", "compressor", "budget", "score", "response"]
    pd.testing.assert_frame_equal(alone[columns], both[columns])


def test_another_configuration_is_refused_with_the_fields_named(tmp_path: Path) -> None:
    evaluate(loaded(), plan(items=1), tmp_path / "e")
    with pytest.raises(UsageError, match=r"items: 1 there, 2 now"):
        evaluate(loaded(), plan(items=2), tmp_path / "e")


def test_folders_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="no evaluation"):
        create_or_continue(tmp_path / "full", {"configuration": {}})
    with pytest.raises(UsageError, match="no evaluation"):
        open_evaluation(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"schema": 1, "configuration": {}, "configuration_hash": ""}))
    with pytest.raises(UsageError, match="run of `measure`"):
        open_evaluation(run)
    empty = create_or_continue(tmp_path / "empty", {"configuration": {}})
    with pytest.raises(ForwardInfluenceError, match="no results yet"):
        empty.frame()


def test_parts_of_different_tasks_never_share_a_name() -> None:
    names = {
        part_stem(t, 100, "seen", 0) for t in ("needle", "needle:keys=1", "needle:keys-1", "needle keys=1", "n/../x")
    }
    assert len(names) == 5
    assert all("/" not in n and "." not in n for n in names)


def test_a_chain_of_thought_is_paired_with_the_direct_answer(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = (parse_task("reasoning"), parse_task("reasoning-cot"))
    made = plan(tasks=tasks, items=1, compressors=("streaming",), budgets=("0.5",), lengths=(1500,))
    frame = evaluate(loaded(dtype=torch.float32), made, tmp_path / "e").frame()
    assert frame["family"].unique().tolist() == ["reasoning"]
    table = paper_layout(accuracy_table(frame), "seen", 1500)
    assert table.columns.tolist() == ["compressor", "held (chosen)", "reasoning 50%"]
    assert all(cell.count(" / ") == 1 for cell in table["reasoning 50%"])


# --- statistics ---


def results(scores: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    rows = [
        {
            "task": "t",
            "family": "t",
            "reasons": False,
            "length": 100,
            "protocol": "seen",
            "item": i,
            "compressor": compressor,
            "budget": budget,
            "run": 0,
            "score": score,
            "response": str(score),
            "new_tokens": 8,
            "limited": i == 0,
            "held": 10.0,
            "held_most": 14.0,
            "pinned": 6.0,
            "chosen": 4.0,
            "pinned_first": 4,
            "pinned_last": 2,
            "grain": "entry",
            "cache_bytes": 10,
            "full_bytes": 100,
            "compress_seconds": 0.1,
        }
        for (compressor, budget), values in scores.items()
        for i, score in enumerate(values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def in_order(scores: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    return results(scores).sort_index()


def test_differences_are_paired_item_by_item() -> None:
    full, other = [1, 1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 0, 1, 1]
    table = accuracy_table(results({("full", "1.0"): full, ("a", "0.2"): other})).set_index("compressor")
    row = table.loc["a"]
    assert row["items"] == 8
    assert row["accuracy"] == np.mean(other)
    assert row["difference"] == pytest.approx(np.mean(other) - np.mean(full))
    assert (row["better"], row["worse"]) == (1, 3)
    assert row["p"] == pytest.approx(2 * (1 + 4) / 16)  # McNemar: 1 of 4 discordant, two-sided binomial
    assert row["same_response"] == 0.5
    assert np.isnan(table.loc["full", "difference"])


def test_a_compressor_as_baseline_is_paired_at_its_own_budget() -> None:
    frame = results(
        {
            ("full", "1.0"): [1] * 6,
            ("a", "0.2"): [0] * 6,
            ("a", "0.4"): [1] * 6,
            ("b", "0.2"): [1] * 6,
            ("b", "0.4"): [1] * 6,
        }
    )
    table = accuracy_table(frame, "a").set_index(["compressor", "budget"])
    assert table.loc[("b", "0.2"), "difference"] == 1
    assert table.loc[("b", "0.4"), "difference"] == 0
    assert np.isnan(table.loc[("full", "1.0"), "difference"])
    with pytest.raises(UsageError, match="did you mean"):
        accuracy_table(frame, "ful")


def test_intervals_have_a_width_where_nothing_differs() -> None:
    zeros = np.zeros(100)
    assert accuracy_interval(zeros)[1:] == pytest.approx((0.0, 0.0370), abs=1e-3)
    difference, low, high, p = paired_difference(zeros, zeros)
    assert (difference, p) == (0, 1)
    assert -0.05 < low < 0 < high < 0.05
    value, low, high = accuracy_interval(np.tile([0.0, 1 / 3, 1.0, 2 / 3], 25))
    assert value == pytest.approx(0.5)
    assert 0.4 < low < value < high < 0.6


def test_paired_intervals_cover() -> None:
    """Bonett and Price's interval holds the true difference in about 95% of simulated evaluations."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        kind = rng.choice(4, size=60, p=[0.3, 0.25, 0.1, 0.35])
        x, y = np.isin(kind, [0, 1]).astype(float), np.isin(kind, [0, 2]).astype(float)
        _, low, high, _ = paired_difference(x, y)
        covered += low <= 0.15 <= high
    assert covered / 400 > 0.92


def test_the_papers_layout() -> None:
    frame = in_order({("full", "1.0"): [1] * 20, ("a", "0.4"): [1] * 20, ("a", "0.2"): [0] * 20})
    table = paper_layout(accuracy_table(frame), "seen", 100)
    assert table.to_dict("list") == {
        "compressor": ["full", "a"],
        "held (chosen)": ["10", "10 (4), 10 (4)"],
        "t 40%": ["100", "100"],
        "t 20%": ["100", "0*"],
    }


def test_retention_curves_show_what_was_found(tmp_path: Path) -> None:
    from forward_influence.analysis.plots import registry as plots

    made = plan(tasks=(parse_task("facts:people=1"),), budgets=("0.6", "0.3"))
    evaluation = evaluate(loaded(dtype=torch.float32), made, tmp_path / "e")
    figure = plots.draw("retention", [evaluation])
    table = accuracy_table(evaluation.frame())
    panels = [a for a in figure.axes if a.get_visible()]
    assert len(panels) == 2
    assert {a.get_title("left") for a in panels} == {"seen", "unseen"}
    for panel in panels:
        part = table[table["protocol"] == panel.get_title("left")]
        drawn = {tuple(np.round(line.get_ydata(), 6)) for line in panel.get_lines()}
        for rule in made.compressors:
            own = part[part["compressor"] == rule].sort_values("cache_bytes")
            assert tuple(np.round(own["accuracy"].to_numpy(), 6)) in drawn
    only_full = evaluate(loaded(dtype=torch.float32), plan(compressors=(), items=1), tmp_path / "f")
    with pytest.raises(UsageError, match="only the full cache"):
        plots.draw("retention", [only_full])


# --- refusals and the command line ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "no task"),
        ({"compressors": ("attentoin",)}, "did you mean 'attention'"),
        ({"compressors": ("random", "random")}, "given twice"),
        ({"budgets": ("0",)}, "selects nothing"),
        ({"budgets": ("1.5",)}, "not below 1"),
        ({"items": 0}, "`items` 0 is too small"),
        ({"items": 10**7}, "`items` 1e\\+07 is too large"),
        ({"protocol": "blind"}, "seen, unseen or both"),
        ({"every": 0}, "`every` 0 is too small"),
    ],
)
def test_wrong_plans_say_why_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (loaded(), {"lengths": (4000,)}, "2048 positions"),
        (loaded(), {"chat": True}, "no chat template"),
        (wrap_model(tiny_model("llama")), {}, "tokenizer"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path: Path, model: Model, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(model, plan(**changes), tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("shard", [(2, 2), (0, 0), (-1, 2)])
def test_shards_that_do_not_exist(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        evaluate(loaded(), plan(), tmp_path / "e", shard=shard)


def app():
    from forward_influence.cli.app import build

    return build()


def test_the_command_writes_tables_and_continues(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    loaded(dtype=torch.float32).model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    out = tmp_path / "e"
    arguments = [
        "evaluate",
        "--model",
        str(folder),
        "--compressor",
        "random",
        "--budget",
        "0.5",
        "--task",
        "facts:people=1",
    ]
    arguments += ["--length", "600", "--items", "2", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app(), arguments)
    assert result.exit_code == 0, result.output
    assert "question seen, 600 tokens, 2 items" in result.output
    assert "question unseen, 600 tokens, 2 items" in result.output
    assert "retention" in result.output
    for form, mark in (
        ("markdown", "| random |"),
        ("latex", r"\toprule"),
        ("csv", "difference_low"),
        ("json", '"accuracy"'),
    ):
        shown = CliRunner().invoke(app(), ["evaluate", "--results", str(out), "--format", form])
        assert shown.exit_code == 0, shown.output
        assert mark in shown.output


def test_wrong_words_on_the_command_line(tmp_path: Path) -> None:
    for words, message in (
        (["--task", "neddle"], "did you mean 'needle'"),
        (["--compressor", "atention"], "did you mean 'attention'"),
        (["--shard", "one"], "is not i/n"),
        (["--results", str(tmp_path)], "no evaluation"),
    ):
        result = CliRunner().invoke(app(), ["evaluate", *words])
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)


def test_a_random_control_is_in_every_table():
    assert [c.name for c in plan(compressors=("attention",), budgets=("0.5",)).contenders] == [
        "full",
        "attention",
        "random",
    ]
    decoding = plan(compressors=("attention", "full"), budgets=("0.5",), every=8)
    assert [c.name for c in decoding.contenders] == ["full", "attention", "random-protected"]
    assert decoding.configuration()["compressors"] == ["full", "attention", "random-protected"]
    assert [c.name for c in plan(compressors=("full",), budgets=()).contenders] == ["full"]

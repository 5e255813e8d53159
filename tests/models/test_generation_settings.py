"""Generation settings: each one a checkpoint or a caller may bring is honoured, without effect, replaced or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import tiny_files
import torch
from plain_writing import by_full_passes
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import CompileConfig, WatermarkingConfig
from visible_sets import prompt

from forward_influence.cli.app import main
from forward_influence.compression import compress, make_compressor
from forward_influence.compression.contenders import Contender
from forward_influence.compression.fidelity import CompressedRun
from forward_influence.compression.generation import generate
from forward_influence.data.tasks import parse_task
from forward_influence.errors import UsageError
from forward_influence.evaluation.plan import Plan
from forward_influence.evaluation.run import evaluate
from forward_influence.execution.run import measure
from forward_influence.instrument.instrument import NAME
from forward_influence.measurement.continuation import generate_continuation
from forward_influence.measurement.request import Request
from forward_influence.models import generation_settings
from forward_influence.models.generation_settings import HONOURED, REFUSED, REPLACED, WITHOUT_EFFECT
from forward_influence.models.loading import Model, wrap_model
from forward_influence.storage.evaluation import open_evaluation

#: A value for each setting that is refused.
WRONG = {
    "use_cache": False,
    "cache_implementation": "static",
    "num_beams": 3,
    "constraints": [1],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "token_healing": True,
    "assistant_early_exit": 1,
    "prompt_lookup_num_tokens": 3,
    "use_mtp": True,
    "is_assistant": True,
    "output_attentions": True,
}
#: A value for each setting that is honoured and bends what is written (lengths and outputs are tried by themselves).
BENDING = {
    "bad_words_ids": [[14], [6, 7]],
    "begin_suppress_tokens": list(range(3, 60)),
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 4.0,
    "exponential_decay_length_penalty": (3, 20.0),
    "forced_eos_token_id": 2,
    "min_length": 68,
    "no_repeat_ngram_size": 1,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 3.0,
    "sequence_bias": [[[9], 50.0]],
    "suppress_tokens": list(range(3, 60)),
    "watermarking_config": WatermarkingConfig(bias=5.0),
}
SAMPLING = {
    "temperature": 2.0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.3,
    "top_h": 0.3,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.05,
    "eta_cutoff": 0.05,
}
WITHOUT = {
    "assistant_confidence_threshold": 0.2,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 3,
    "cache_config": {"backend": "quanto"},
    "compile_config": CompileConfig(),
    "decoder_start_token_id": 5,
    "disable_compile": True,
    "diversity_penalty": 0.5,
    "early_stopping": True,
    "length_penalty": 2.0,
    "low_memory": True,
    "max_cache_len": 100,
    "max_matching_ngram_size": 3,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 2,
    "speculation_type": "dflash",
    "target_lookbehind": 3,
}
N, NEW = 60, 12
ONES = torch.ones(1, N, dtype=torch.int64)


@contextmanager
def brought(model: PreTrainedModel, **settings: Any) -> Iterator[None]:
    """The checkpoint's generation_config brings these settings; the tiny models are shared between tests."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    try:
        yield
    finally:
        model.generation_config = own


def call(model: PreTrainedModel, **arguments: Any) -> torch.Tensor:
    """`generate`, greedy unless told otherwise."""
    settings = {"attention_mask": ONES, "max_new_tokens": NEW, **arguments}
    return model.generate(prompt(N), **settings)


def seeded(model: PreTrainedModel, **arguments: Any) -> list[int]:
    torch.manual_seed(5)
    return call(model, **arguments)[0].tolist()


# --- every setting has its place ---


def test_every_setting_of_transformers_has_one_place():
    """A new release brings new settings: each is looked at before it is let through."""
    known = [*HONOURED, *WITHOUT_EFFECT, *REPLACED, *REFUSED]
    assert len(known) == len({*known})
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert fields <= {*known}, sorted(fields - {*known})


def test_the_page_goes_through_all_of_them():
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text("utf-8")
    for name in (*HONOURED, *WITHOUT_EFFECT, *REPLACED, *REFUSED):
        assert f"`{name}`" in page, name


def test_these_tests_try_all_of_them():
    assert {*WRONG} == {*REFUSED} - {"assistant_model"}
    several = {"num_return_sequences"}  # tests/compression/test_batches.py
    lengths = {"max_length", "max_new_tokens", "min_new_tokens", "max_time", "do_sample", "stop_strings"}
    outputs = {"output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"}
    tokens = {"bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id"}
    assert {*BENDING, *SAMPLING} | lengths | outputs | tokens | several == HONOURED
    assert {*WITHOUT} == WITHOUT_EFFECT - {"continuous_batching_config"}  # deprecated: setting it warns


# --- a caller's own generate ---


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, way) for name in WRONG for way in ("kwargs", "passed", "brought")), ("assistant_model", "kwargs")],
)
def test_what_cannot_be_is_refused_in_one_line_wherever_it_comes_from(name: str, way: str) -> None:
    model = tiny_model("llama")
    value = {**WRONG, "assistant_model": tiny_model("llama", seed=4)}[name]
    settings = {name: value}
    passed = GenerationConfig(max_new_tokens=NEW)
    setattr(passed, name, value)
    arguments = {
        "kwargs": {"max_new_tokens": NEW, **settings},
        "passed": {"generation_config": passed},
        "brought": {"max_new_tokens": NEW},
    }[way]
    with compress(model, "attention", budget=0.3) as cache:
        with (
            brought(model, **(settings if way == "brought" else {})),
            pytest.raises(UsageError, match=f"^{name}=") as raised,
        ):
            model.generate(prompt(N), attention_mask=ONES, past_key_values=cache, **arguments)
        assert "\n" not in str(raised.value)
        where = {"kwargs": "as passed to generate", "passed": "that was passed", "brought": "the model's"}[way]
        assert where in str(raised.value)
        assert f"pass {name}={REFUSED[name].instead}" in str(raised.value)
        assert cache.stats.seen == 0, "nothing was read"
        with brought(model, **(settings if way == "brought" else {})):  # the remedy works, in the same block
            call(model, past_key_values=cache, **{name: REFUSED[name].instead})
        assert cache.stats.seen == N + NEW - 1
    assert "generate" not in vars(model)
    assert model.config._attn_implementation != NAME


@pytest.mark.parametrize("way", ["kwargs", "brought"])
@pytest.mark.parametrize("name", [*BENDING, *SAMPLING])
def test_what_is_honoured_is_as_with_any_other_cache(name: str, way: str) -> None:
    """The reference is the model's own generate, without any of ours."""
    settings = {name: {**BENDING, **SAMPLING}[name], "do_sample": name in SAMPLING}
    model = tiny_model("llama")
    given = settings if way == "kwargs" else {}
    with brought(model, **({} if given else settings)):
        plain = seeded(model, **given)
        with compress(model, "full") as cache:
            assert seeded(model, past_key_values=cache, **given) == plain
    harmless = ("remove_invalid_values", "renormalize_logits", "min_length")
    unbent = seeded(model, do_sample=settings["do_sample"])
    assert (plain != unbent) or name in harmless, "the setting bends nothing here, so that nothing was tested"


def test_forced_first_tokens_and_ends_are_honoured():
    model = tiny_model("llama")
    first = prompt(1)
    settings: dict[str, Any] = {"attention_mask": ONES[:, :1], "max_new_tokens": 8}
    with brought(model, forced_bos_token_id=50):
        plain = model.generate(first, **settings).tolist()
        with compress(model, "full") as cache:
            assert model.generate(first, past_key_values=cache, **settings).tolist() == plain
    assert plain[0][1] == 50
    written = seeded(model)[N:]
    with brought(model, eos_token_id=[90, written[4]]), compress(model, "full") as cache:
        ended = seeded(model, past_key_values=cache)[N:]
    assert ended == written[: written.index(written[4]) + 1]


def test_stop_strings_need_the_tokenizer_and_are_honoured_with_it():
    model, tokenizer = tiny_model("llama", torch.float32, vocab_size=VOCABULARY), byte_tokenizer()
    ids = tokenizer("the tide turns", return_tensors="pt")["input_ids"]
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    plain = model.generate(ids, **settings)[0].tolist()
    stop = tokenizer.decode([plain[ids.shape[1] + 6]])
    with compress(model, "full") as cache:
        with pytest.raises(UsageError, match="pass tokenizer=tokenizer too"):
            model.generate(ids, past_key_values=cache, stop_strings=[stop], **settings)
        ended = model.generate(ids, past_key_values=cache, stop_strings=[stop], tokenizer=tokenizer, **settings)
    assert ended[0].tolist() == plain[: plain.index(plain[ids.shape[1] + 6], ids.shape[1]) + 1]


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_has_no_effect_has_none(name: str) -> None:
    model = tiny_model("llama")
    wanted = seeded(model)
    with compress(model, "attention", budget=0.3) as cache:
        compressed = seeded(model, past_key_values=cache)
    for way in ({name: WITHOUT[name]}, {}):
        with brought(model, **({} if way else {name: WITHOUT[name]})):
            with compress(model, "full") as cache:
                assert seeded(model, past_key_values=cache, **way) == wanted
            with compress(model, "attention", budget=0.3) as cache:
                assert seeded(model, past_key_values=cache, **way) == compressed
            assert cache.stats.held.unique().tolist() == [int(0.3 * N) + NEW - 1]


@pytest.mark.parametrize("way", ["kwargs", "brought"])
@pytest.mark.parametrize("every", [None, 100])
def test_a_prompt_that_generate_would_cut_up_is_compressed_when_it_is_through(way: str, every: int | None) -> None:
    """Two turns, each read in chunks of its own by `generate`: the same entries stay as with a single pass."""
    model = tiny_model("llama", max_position_embeddings=2048)
    settings = {"prefill_chunk_size": 64}
    found = []
    for chunked in (True, False):
        given = settings if chunked and way == "kwargs" else {}
        with (
            brought(model, **(settings if chunked and way == "brought" else {})),
            compress(model, "attention", budget=0.3, every=every) as cache,
        ):
            first = model.generate(
                prompt(700), past_key_values=cache, attention_mask=torch.ones(1, 700), max_new_tokens=10, **given
            )
            longer = torch.cat([first, prompt(300, seed=8)], dim=1)
            model.generate(
                longer, past_key_values=cache, attention_mask=torch.ones_like(longer), max_new_tokens=10, **given
            )
            found.append([layer.positions().tolist() for layer in cache.layers])
        assert [event.seen for event in cache.stats.events] == ([700] if every is None else [700, 1010])
        if every is None:
            assert cache.stats.held.unique().tolist() == [210 + 310 + 9]
    assert found[0] == found[1]


def test_outputs_in_a_dictionary_are_those_of_any_other_cache():
    model = tiny_model("llama", max_position_embeddings=2048)
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    settings: dict[str, Any] = {"attention_mask": torch.ones(1, 600, dtype=torch.int64), "max_new_tokens": 5}
    plain = model.generate(prompt(600), output_hidden_states=True, **asked, **settings)
    with compress(model, "full") as cache:
        found = model.generate(prompt(600), past_key_values=cache, output_hidden_states=True, **asked, **settings)
    assert found.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(plain[name]), atol=1e-6, rtol=0)
    assert [h[-1].shape for h in found.hidden_states] == [h[-1].shape for h in plain.hidden_states]
    torch.testing.assert_close(found.hidden_states[0][1], plain.hidden_states[0][1], atol=1e-9, rtol=0)


def test_hidden_states_that_the_configuration_asks_for_are_whole():
    """A prompt of more than 512 tokens is read in chunks, but not where every layer's output is wanted."""
    model = copy.deepcopy(tiny_model("llama", max_position_embeddings=2048))
    model.config.output_hidden_states = True
    with torch.no_grad(), compress(model, "full") as cache:
        output = model(prompt(600), past_key_values=cache)
    assert {h.shape[1] for h in output.hidden_states} == {600}


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text", "gpt_oss"])
def test_a_configuration_without_use_cache_changes_nothing(family: str) -> None:
    """config.json may have use_cache=false, which fine-tuning leaves behind."""
    found = []
    for use in (True, False):
        model = copy.deepcopy(tiny_model(family))
        model.config.use_cache = use
        with torch.no_grad(), compress(model, "attention", budget=0.3) as cache:
            output = model(prompt(N), past_key_values=cache)
            assert output.past_key_values is cache
            written = model.generate(torch.cat([prompt(N), prompt(4)], dim=1), past_key_values=cache, max_new_tokens=6)
        found.append((written.tolist(), cache.stats.held.tolist()))
    assert found[0] == found[1]


def test_passes_by_hand_without_the_cache_in_use_are_refused():
    model = tiny_model("llama")
    with torch.no_grad(), compress(model, "attention", budget=0.3) as cache:
        for run in (model, model.model):
            with pytest.raises(UsageError, match=r"use_cache=False inside .* contradicts its cache"):
                run(prompt(N), past_key_values=cache, use_cache=False)
        assert cache.stats.seen == 0
        model(prompt(N), past_key_values=cache)
        assert cache.stats.held.unique().tolist() == [int(0.3 * N)]


def test_a_cache_that_is_not_spoken_of_is_in_use():
    """`generate` fills in a setting that is left out, but takes one that is None for no."""
    model = tiny_model("llama")
    for given in ({}, {"use_cache": None}, {"use_cache": True}, {"cache_implementation": "dynamic"}):
        with compress(model, "attention", budget=0.3) as cache:
            call(model, past_key_values=cache, **given)
        assert cache.stats.seen == N + NEW - 1, given


def test_a_generate_of_the_models_own_is_put_back():
    model = copy.deepcopy(tiny_model("llama"))
    calls = []
    own = model.generate

    def special(*args: Any, **named: Any) -> Any:
        calls.append(named)
        return own(*args, **named)

    model.generate = special
    with compress(model, "full") as cache:
        call(model, past_key_values=cache)
        with pytest.raises(UsageError, match="num_beams"):
            call(model, past_key_values=cache, num_beams=2)
    assert model.generate is special
    assert len(calls) == 1


# --- measuring ---

#: What would bend or break each kind of measurement, were it taken over.
HOSTILE = {
    "use_cache": False,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(4, 200)),
    "begin_suppress_tokens": [5],
    "forced_eos_token_id": 2,
    "bad_words_ids": [[7]],
    "sequence_bias": [[[9], 50.0]],
    "min_length": 90,
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 0.2,
    "top_k": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "stop_strings": ["e"],
    "cache_implementation": "static",
    "prefill_chunk_size": 16,
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 2.0,
    "watermarking_config": WatermarkingConfig(bias=9.0),
    "token_healing": True,
    "max_length": 30,
    "max_time": 0.0,
}


@contextmanager
def hostile(model: Model) -> Iterator[None]:
    """A checkpoint that brings all of that, and a `generate` of its own from the hub."""
    model.model.generate = lambda *args, **named: pytest.fail("the checkpoint's own generate ran")  # type: ignore
    try:
        with brought(model.model, **HOSTILE):
            yield
    finally:
        del model.model.generate


def test_continuations_are_the_models_own_distributions():
    model = tiny_data.model(dtype=torch.float64)
    [document] = tiny_data.documents(1, 40)
    [context] = document.segments
    wanted = by_full_passes(model.model, context, 20, never=(2,))  # it may not end early
    drawn = generate_continuation(model, context, 20, 1.0, seed=3)
    with hostile(model):
        assert generate_continuation(model, context, 20, 0.0, seed=1).tolist() == wanted
        assert torch.equal(generate_continuation(model, context, 20, 1.0, seed=3), drawn)
        assert model.model.generation_config.num_beams == 3, "the checkpoint's own are put back"


def text_model(chat: bool = False) -> Model:
    model = tiny_model("llama", torch.float64, vocab_size=VOCABULARY, max_position_embeddings=2048)
    return wrap_model(model, byte_tokenizer(chat), spec="tiny")


def plan(**changes: Any) -> Plan:
    settings = {
        "tasks": (parse_task("facts:people=1"),),
        "compressors": ("attention", "random"),
        "budgets": ("1.0", "0.3"),
        "lengths": (500,),
        "items": 2,
    }
    return Plan(**{**settings, **changes})


RESPONSES = ["protocol", "item", "compressor", "budget", "response"]


@pytest.mark.parametrize("every", [None, 3, 1000])
def test_evaluations_do_not_depend_on_what_the_checkpoint_brings(tmp_path: Path, every: int | None) -> None:
    model = text_model()
    before = evaluate(model, plan(every=every), tmp_path / "a").frame()
    with hostile(model):
        after = evaluate(model, plan(every=every), tmp_path / "b").frame()
    assert after[RESPONSES].values.tolist() == before[RESPONSES].values.tolist()
    said = open_evaluation(tmp_path / "b").manifest["model"]["generation"]
    assert said["settings"] == "neutral"
    assert said["end_tokens"] == [2]
    assert said["left_out"]["repetition_penalty"] == 5.0
    assert said["left_out"]["use_cache"] is False


def test_the_full_cache_answers_the_same_with_every_and_without(tmp_path: Path) -> None:
    """And that is what whole passes say."""
    model = text_model()
    with hostile(model):
        frames = [
            evaluate(model, plan(every=every, compressors=("attention",)), tmp_path / str(every)).frame()
            for every in (None, 4)
        ]
    whole = [frame[frame["budget"] == "1.0"].query("compressor in ('full', 'attention')") for frame in frames]
    assert whole[0][RESPONSES].values.tolist() == whole[1][RESPONSES].values.tolist()
    assert len(whole[0]) == 8
    for row in whole[0].to_dict("records"):
        item = plan().tasks[0].item(row["item"], 500, lambda text: len(text))
        text = f"{item.context}\n\n{item.question}\n{item.answer_prefix}"
        ids = torch.tensor(model.tokenizer(text)["input_ids"])
        written = model.tokenizer.decode(by_full_passes(model.model, ids, 8), skip_special_tokens=True)
        assert row["response"] == written.split("\n")[0]


def test_an_evaluation_with_other_end_tokens_is_another_one(tmp_path: Path) -> None:
    model = text_model()
    evaluate(model, plan(items=1), tmp_path / "e")
    with brought(model.model, eos_token_id=[2, 40]), pytest.raises(UsageError, match="end_tokens"):
        evaluate(model, plan(items=1), tmp_path / "e")


def test_fidelity_does_not_depend_on_what_the_checkpoint_brings():
    model = tiny_data.model(dtype=torch.float64)
    [document] = tiny_data.documents(1, 80)
    [tokens] = document.segments
    run = CompressedRun(model, Contender("attention", "0.3", 8).compressor, tokens[:50], 0, 16)
    before = run(tokens[50:])
    with hostile(model):
        assert torch.equal(run(tokens[50:]), before)


def test_a_runs_manifest_says_what_was_left_out(tmp_path: Path) -> None:
    model = tiny_data.model()
    request = Request(selectors=("recent",), context=120, continuation=8, continuation_from="generate")
    with hostile(model):
        run = measure(model, tiny_data.documents(1, 120), request, tmp_path / "run")
    left = run.manifest["model"]["generation"]["left_out"]
    assert json.loads(json.dumps(left)) == left
    assert {*HOSTILE} <= {*left}


def test_a_checkpoint_that_brings_nothing_leaves_nothing_out():
    assert generation_settings.described(tiny_model("llama")) == {
        "settings": "neutral",
        "end_tokens": [2],
        "left_out": {},
    }


# --- writing for people ---


def test_what_bends_the_choice_of_tokens_is_the_checkpoints_own():
    model = text_model()
    text = "the tide turns twice a day"
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    for name, value in BENDING.items():
        with brought(model.model, **{name: value}):
            plain = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)
            found = generate(model, text, make_compressor("full"), max_new_tokens=20)
        assert found.text == model.tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True), name
        assert found.remarks == ()


def test_stop_strings_of_a_checkpoint_end_the_text():
    model = text_model()
    whole = generate(model, "the tide", make_compressor("full"), max_new_tokens=20)
    stop = next(c for c in whole.text[1:] if c.isascii() and c.isprintable())
    with brought(model.model, stop_strings=[stop]):
        found = generate(model, "the tide", make_compressor("full"), max_new_tokens=20)
    assert found.text == whole.text[: whole.text.index(stop) + len(stop)] != whole.text


def test_how_it_is_decoded_is_what_the_command_says():
    """A compressed cache at work, and of the checkpoint only what the command cannot do is remarked on."""
    model, compressor = text_model(), make_compressor("attention", "0.3")
    text = "the tide turns twice a day, and ships wait for the tide"
    plain = generate(model, text, compressor, max_new_tokens=10)
    drawn = generate(model, text, compressor, max_new_tokens=10, temperature=1.5, seed=4)
    bending = {*BENDING, "stop_strings", "max_time"}
    others = {name: value for name, value in {**HOSTILE, **SAMPLING, **WITHOUT}.items() if name not in bending}
    with brought(model.model, **others):
        found = generate(model, text, compressor, max_new_tokens=10)
        sampled = generate(model, text, compressor, max_new_tokens=10, temperature=1.5, seed=4)
    assert (found.text, sampled.text) == (plain.text, drawn.text)
    assert found.stats.seen == len(text) + 9
    assert found.stats.held.unique().tolist() == [int(0.3 * len(text)) + 9]
    named = [remark.split("=")[0].split()[-1] for remark in found.remarks]
    assert sorted(named) == ["guidance_scale", "num_beams", "token_healing"]
    named = {remark.split("=")[0].split()[-1] for remark in sampled.remarks}
    assert named == {"guidance_scale", "num_beams", "token_healing", *SAMPLING} - {"temperature", "top_p"}


@pytest.mark.parametrize("form", ["generation_config.json", "config.json"])
def test_the_command_with_a_hostile_checkpoint(capsys: Any, tmp_path: Path, form: str) -> None:
    folder = tiny_files.save_tiny(tmp_path / "model")
    path = folder / form
    settings = json.loads(path.read_text()) if path.exists() else {}
    settings |= {"use_cache": False, "num_beams": 4, "repetition_penalty": 1.2, "return_dict_in_generate": True}
    path.write_text(json.dumps(settings))
    if form == "config.json":
        (folder / "generation_config.json").unlink()
    given = ["generate", "--model", str(folder), "--compressor", "snapkv", "--budget", "10", "--max-new-tokens", "6"]
    given += ["--compress-prompt"]
    with pytest.raises(SystemExit) as stopped:
        main([*given, "the tide turns twice a day"])
    err = capsys.readouterr().err
    assert not stopped.value.code, err
    assert "6 generated" in err
    assert "held: 15 of" in err
    assert "Traceback" not in err
    if form == "generation_config.json":
        assert (
            "note: the checkpoint's num_beams=4 was left out: beam search lets sequences take each other's places"
            in err
        )

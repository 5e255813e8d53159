"""The harness: our model is known to it, our tasks run without a network, scores are those of a plain model."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer

from forward_influence.errors import ForwardInfluenceError, UsageError

pytest.importorskip("lm_eval")

from forward_influence.integrations.lm_eval import MODEL, register, task_folder
from forward_influence.lm_eval.__main__ import with_own_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", torch.float32, vocab_size=VOCABULARY, max_position_embeddings=2048).save_pretrained(path)
    byte_tokenizer(chat=True).save_pretrained(path)
    return path


def model(folder: Path, **arguments):
    from forward_influence.integrations.lm_eval.model import CompressedModel

    return CompressedModel(pretrained=str(folder), dtype="float64", device="cpu", **arguments)


def request(*arguments, doc: dict | None = None) -> SimpleNamespace:
    return SimpleNamespace(args=arguments, doc=doc or {})


def log_likelihood(folder: Path, context: str, continuation: str) -> float:
    """The plain reference: one pass of the model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = byte_tokenizer()
    first, second = (tokenizer(t, return_tensors="pt")["input_ids"] for t in (context, continuation))
    with torch.no_grad():
        logits = plain(torch.cat([first, second], dim=1)).logits[0, first.shape[1] - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, second[0][:, None]).sum())


def test_log_likelihoods_with_the_full_cache_are_the_models_own(folder: Path) -> None:
    requests = [request("The context is this", " word"), request("A", "B"), request("The context is this", " other")]
    found = model(folder).loglikelihood(requests, disable_tqdm=True)
    for one, (value, _) in zip(requests, found, strict=True):
        assert value == pytest.approx(log_likelihood(folder, *one.args), abs=1e-9)


def test_a_compressed_context_changes_every_scored_token(folder: Path) -> None:
    """Also the first one, which multiple choice often hangs on."""
    ask = [request("A context of some length, long enough to lose tokens. " * 4, "x")]
    full, small = (
        model(folder, **arguments).loglikelihood(ask, disable_tqdm=True)[0][0]
        for arguments in ({}, {"compressor": "random", "budget": 0.3})
    )
    assert full != pytest.approx(small, abs=1e-6)


def test_rolling_log_likelihoods_with_a_compressed_context(folder: Path) -> None:
    """The full cache in the same windows is what whole passes say; what is compressed shows from the second one on."""
    text = "".join(chr(97 + (7 * i * i) % 26) for i in range(300))
    plain = model(folder).loaded.model
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    wanted = log_likelihood(folder, "<s>", text[:40])
    for start in range(40, 300, 61):
        window = ids[:, start - 40 : start + 61]
        with torch.no_grad():
            log_p = plain(window[:, :-1]).logits[0].log_softmax(-1)[39:]
        wanted += float(log_p.gather(-1, window[0, 40:, None]).sum())
    windows = {"window": 100, "rolling_context": 40}
    full = model(folder, **windows)
    small = model(folder, compressor="streaming", budget=0.3, **windows)
    whole = [m.loglikelihood_rolling([request(text)], disable_tqdm=True)[0] for m in (full, small)]
    assert whole[0] == pytest.approx(wanted, abs=1e-8)
    assert whole[1] != pytest.approx(wanted, abs=1e-3)
    first = [m.loglikelihood_rolling([request(text[:40])], disable_tqdm=True)[0] for m in (full, small)]
    assert first[0] == first[1], "nothing comes before these tokens"


def test_windows_in_which_nothing_can_be_compressed_are_refused(folder: Path) -> None:
    """With the harness's own windows a compressor would be the full cache under another name."""
    with pytest.raises(UsageError, match="rolling_context=1024"):
        model(folder, compressor="streaming", budget=0.3).loglikelihood_rolling([request("x")], disable_tqdm=True)
    assert model(folder, compressor="streaming", budget=1.0).rolling_context == 1
    for context in (0, 100, 2048):
        with pytest.raises(UsageError, match="leaves nothing to score in a window of 100"):
            model(folder, window=100, rolling_context=context)


def test_windows_score_every_token_once() -> None:
    from forward_influence.integrations.lm_eval.reading import rolling_windows

    for length in (0, 1, 6, 7, 13, 40):
        tokens = list(range(100, 100 + length))
        found = list(rolling_windows(tokens, 1, 12, 7))
        assert [t for _, scored in found for t in scored] == tokens
        assert all(len(context) + len(scored) <= 13 for context, scored in found)  # the last one scored is not read
        assert [context for context, _ in found[:1]] in ([], [[1]])
        for context, scored in found[1:]:
            assert context == list(range(scored[0] - 7, scored[0]))


def test_generation_is_that_of_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = byte_tokenizer()
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    wanted = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    settings = {"max_gen_toks": 12, "until": []}
    for arguments in ({}, {"every": 3}):
        made = model(folder, **arguments).generate_until([request("Once upon a time", settings)], disable_tqdm=True)
        assert made == [wanted]
    stop = wanted[3]
    ended = model(folder).generate_until(
        [request("Once upon a time", {**settings, "until": [stop]})], disable_tqdm=True
    )
    assert ended == [wanted[: wanted.index(stop)]]


def test_the_question_is_found_in_the_prompt(folder: Path) -> None:
    settings = {"max_gen_toks": 4, "until": []}
    text = "A long context. " * 10 + "What is it?" + " Answer:"
    unseen = model(folder, protocol="unseen", compressor="random", budget=0.3)
    unseen.generate_until([request(text, settings, doc={"question": "What is it?"})], disable_tqdm=True)
    with pytest.raises(UsageError, match="does not hold its document's 'question'"):
        unseen.generate_until([request(text, settings, doc={"query": "?"})], disable_tqdm=True)
    with pytest.raises(UsageError, match="does not hold its document's 'question'"):
        unseen.loglikelihood([request(text, "x", doc={"query": "?"})], disable_tqdm=True)


@pytest.mark.parametrize("protocol", ["seen", "unseen"])
def test_a_scored_context_is_compressed_where_an_answered_one_is(folder: Path, protocol: str) -> None:
    """The first entries held, whatever is asked after them; the reference keeps by hand what the compressor keeps."""
    from forward_influence.instrument.instrument import Instrument

    document = {"question": "What is it?", "answer_prefix": "It is"}
    text = "A long context. " * 20 + "What is it?\nIt is"
    harness = model(folder, protocol=protocol, compressor="attention", budget=0.2)
    found = harness.loglikelihood([request(text, " a word", doc=document)], disable_tqdm=True)[0][0]
    at = text.index("What") if protocol == "unseen" else text.index("\nIt is")
    ids = torch.tensor(byte_tokenizer()(text + " a word")["input_ids"])
    trace = harness._trace(ids[:at], 50)
    cache = trace.cache.branch(harness.contender.keep(trace, 0), 60)
    with torch.no_grad(), Instrument(harness.loaded.model, cache=cache):
        logits = harness.loaded.model(ids[None, at:-1], past_key_values=cache).logits[0]
    log_p = logits.log_softmax(-1).gather(-1, ids[at + 1 :, None])[:, 0]
    assert found == pytest.approx(float(log_p[-len(" a word") :].sum()), abs=1e-9)


def test_choices_of_one_context_that_reach_beyond_a_window(tmp_path: Path) -> None:
    """The recorded context is shared by the choices, but a layer is full only as long as its window covers them."""
    tiny_model("gemma3_text", torch.float32, vocab_size=VOCABULARY, sliding_window=40).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    requests = [request("x the context" * 2, " y" * n) for n in (1, 12, 1)]
    for arguments in ({}, {"compressor": "streaming", "budget": 0.5}):
        shared = model(tmp_path, **arguments).loglikelihood(requests, disable_tqdm=True)
        for one, (value, _) in zip(requests, shared, strict=True):
            alone = model(tmp_path, **arguments).loglikelihood([one], disable_tqdm=True)[0][0]
            assert value == pytest.approx(alone, abs=1e-9)
            if not arguments:
                assert value == pytest.approx(log_likelihood(tmp_path, *one.args), abs=1e-9)


def test_a_question_without_room_for_its_context_is_refused(folder: Path) -> None:
    small = model(folder, protocol="unseen", compressor="attention", budget=0.5, max_length=60)
    question = "What is it, and what was it before?"
    asked = request("A context. " * 9 + question, {"max_gen_toks": 30, "until": []}, doc={"question": question})
    with pytest.raises(UsageError, match="leaves no room for it: 30 tokens"):
        small.generate_until([asked], disable_tqdm=True)
    assert small.generate_until([request(*asked.args[:1], {"max_gen_toks": 20}, doc=asked.doc)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compressor": "infokf", "budget": 0.5}, "did you mean 'infokv'"),
        ({"compressor": "infokv", "budget": 0}, "selects nothing"),
        ({"protocol": "both"}, "seen or unseen"),
        ({"batch_size": "many"}, "no number of requests"),
        ({"batch_size": 0}, "no number of requests"),
        ({"budgets": 0.2}, "unknown"),
        ({"max_length": 0}, "at least one token"),
        ({"compressor": "infokv", "budget": 0.2, "match_held": 50}, "give one of them"),
        ({"compressor": "infokv", "match_held": 0}, "no number of entries to hold"),
        ({"compressor": "infokv", "budget": 0.2, "protect_last": 0.7}, "at most 0.5"),
    ],
)
def test_wrong_arguments_say_why(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model(folder, **arguments)


def test_registered_once_and_more(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model(MODEL).__name__ == "CompressedModel"


def test_the_harnesses_own_models_are_there_too() -> None:
    """To compare with; in a process of its own, for other tests have them loaded."""
    code = "from forward_influence.integrations.lm_eval import register; register()\n"
    code += "from lm_eval.api.registry import get_model; print(get_model('hf').__name__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.strip().endswith("HFLM"), ended.stderr[-500:]


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(UsageError, match=r"forward-influence\[evaluate\]"):
        register()


def test_own_tasks_are_added_to_those_included(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("include_path: /theirs\n")
    for given, wanted in (
        ({}, [str(task_folder())]),
        ({"include_path": "/mine"}, [str(task_folder()), "/mine"]),
        ({"config": str(config)}, [str(task_folder()), "/theirs"]),
    ):
        arguments = SimpleNamespace(**given)
        with_own_tasks(arguments)
        assert arguments.include_path == wanted


def test_every_task_has_a_task_file_that_says_the_same() -> None:
    from lm_eval.tasks import TaskManager

    from forward_influence.data.tasks import TASKS

    manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
    assert sorted(manager.all_tasks) == sorted(["forward_influence", *(f"fi_{n.replace('-', '_')}" for n in TASKS)])
    for name, task in TASKS.items():
        if name.startswith("reasoning") or name == "thinking":
            continue  # needs reasoning-gym; its file differs in nothing else
        made = manager.load_task_or_group([f"fi_{name.replace('-', '_')}"])
        (loaded,) = made.values()
        settings = loaded.config.generation_kwargs
        assert settings["max_gen_toks"] == task.answer_tokens
        assert tuple(settings["until"]) == task.until
        assert len(loaded.test_docs()) == 100


@pytest.mark.parametrize("chat", [False, True])
def test_the_harness_asks_what_evaluate_asks(chat: bool) -> None:
    """Text for text, so that both read the same tokens."""
    from lm_eval.tasks import TaskManager

    from forward_influence.data.tasks import TASKS
    from forward_influence.evaluation.prompts import make_prompt

    tokenizer = byte_tokenizer(chat=True)

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        more = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return tokenizer.apply_chat_template(messages, tokenize=False, **more)

    manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
    for name in TASKS:
        if (name.startswith("reasoning") or name == "thinking") and find_spec("reasoning_gym") is None:
            continue
        (task,) = manager.load_task_or_group([f"fi_{name.replace('-', '_')}"]).values()
        for doc in list(task.test_docs())[:3]:
            asked = {"apply_chat_template": True, "chat_template": template} if chat else {}
            theirs = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc), **asked)
            ours = make_prompt(tokenizer, doc["context"], doc["question"], doc["answer_prefix"], chat)
            assert tokenizer.decode(torch.cat(ours.parts("seen"))) == theirs


def run(folder: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "forward_influence.lm_eval", "run", "--model", "forward_influence"]
    words += ["--model_args", f"pretrained={folder},compressor=infokv,budget=0.3", "--device", "cpu"]
    return subprocess.run(
        [*words, "--output_path", str(out), *more],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=out.parent,
        check=False,
    )


def test_results_say_what_was_held(folder: Path) -> None:
    """One size for all kinds of requests: scored continuations, greedy answers, answers that go on compressing."""
    arguments = {"compressor": "attention", "match_held": 30, "protect_last": "0.2"}
    quiet = model(folder, **arguments)
    assert quiet.get_model_info() == {"compressor": "attention", "budget": "held=30", "every": None}
    quiet.loglikelihood([request("word " * 30, " more")], disable_tqdm=True)
    quiet.generate_until([request("word " * 30, {"max_gen_toks": 4, "until": []})], disable_tqdm=True)
    assert len(quiet.outcomes) == 2
    found = {"compressor": "attention", "budget": "held=30", "every": None, "held": 30, "pinned": 10, "chosen": 20}
    assert quiet.get_model_info() == found
    growing = model(folder, every=3, **arguments)
    growing.generate_until([request("word " * 30, {"max_gen_toks": 8, "until": []})], disable_tqdm=True)
    assert growing.get_model_info() == {**found, "every": 3}
    fraction = model(folder, compressor="attention", budget=0.5)
    fraction.loglikelihood([request("word " * 30, " more")], disable_tqdm=True)
    n = len("word " * 30) - 1  # a token is a byte here, and the last one is read from what is left
    info = fraction.get_model_info()
    assert (info["held"], info["pinned"]) == (n // 2, 4 + n // 4)


def test_the_harness_runs_our_task_with_our_model_end_to_end(folder: Path, tmp_path: Path) -> None:
    ended = run(
        folder,
        tmp_path / "out",
        "--tasks",
        "fi_facts",
        "--limit",
        "2",
        "--metadata",
        "length=600",
        "items=3",
        "--log_samples",
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert 0 <= results["results"]["fi_facts"]["accuracy,none"] <= 1
    assert results["n-samples"]["fi_facts"] == {"original": 3, "effective": 2}
    told = results["config"]
    assert told["held"] == pytest.approx(told["pinned"] + told["chosen"])
    assert told["held"] > 0
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    prompt = first["arguments"]["gen_args_0"]["arg_0"]
    assert first["doc"]["context"] in prompt
    assert prompt.endswith(f"{first['doc']['question']}\n{first['doc']['answer_prefix']}")


def test_the_harness_fails_in_one_line(folder: Path, tmp_path: Path) -> None:
    ended = run(folder, tmp_path / "out", "--tasks", "fi_facts", "--limit", "1", "--metadata", "length=20")
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("error: length 20 is too short")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "fi_nedle"], "fi_nedle"),
        (["--tasks", "fi_facts", "--model_args", "compressor=infokv"], "infokv compresses nothing without a budget"),
        (["--tasks", "fi_facts", "--model_args", "compressor=infokv,budget=0.5,every=x"], "not a whole number"),
        (["--tasks", "fi_facts", "--model_args", "batch_size=4"], "batch_size"),
    ],
)
def test_wrong_requests_are_one_line(folder: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    model = f"pretrained={folder}" + (f",{given['--model_args']}" if "--model_args" in given else "")
    command = [sys.executable, "-m", "forward_influence.lm_eval", "run", "--model", "forward_influence"]
    command += ["--model_args", model, "--tasks", given["--tasks"], "--limit", "1", "--metadata", "length=300"]
    ended = subprocess.run([*command, "--output_path", str(tmp_path)], capture_output=True, text=True, timeout=600)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2, ended.stderr
    assert last.startswith("error: ") and said in last
    assert "Traceback" not in ended.stderr


def test_tokens_that_the_model_does_not_know_are_named(tmp_path: Path) -> None:
    tiny_model("llama", torch.float32, vocab_size=VOCABULARY, max_position_embeddings=2048).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path)
    found = model(tmp_path)
    words = rf"token \d+ \(id {VOCABULARY}, '<extra>'\) is not in the model's vocabulary"
    with pytest.raises(ForwardInfluenceError, match=words):
        found.loglikelihood([request("the tide", " <extra>")], disable_tqdm=True)
    with pytest.raises(ForwardInfluenceError, match=words):
        found.generate_until([request("the tide <extra> turns", {"max_gen_toks": 3})], disable_tqdm=True)
    with pytest.raises(ForwardInfluenceError, match=words):
        found.loglikelihood_rolling([request("the tide <extra> turns")], disable_tqdm=True)


@pytest.mark.parametrize("every", [None, 5])
@pytest.mark.parametrize("compressor", ["infokv", "random", "full"])
def test_no_answer_depends_on_the_batch(folder: Path, compressor: str, every: int | None) -> None:
    """In float64: prompts of other lengths, ends and limits, and one that is sampled, which runs by itself."""
    budget = {} if compressor == "full" else {"budget": 0.4}
    given = {"compressor": compressor, "every": every, "seed": 3, **budget}
    asked = [request(f"Text {i}. " * (3 + 2 * i) + "What is it?", {"max_gen_toks": 12, "until": []}) for i in range(4)]
    asked.append(request("And this one?", {"max_gen_toks": 7, "until": []}))
    asked.append(request("Which one? " * 4, {"max_gen_toks": 7, "until": [], "do_sample": True, "temperature": 2.0}))
    torch.manual_seed(0)
    alone = model(folder, **given)
    wanted = alone.generate_until(asked, disable_tqdm=True)
    for batch in (3, "auto"):
        torch.manual_seed(0)
        batched = model(folder, batch_size=batch, **given)
        assert batched.generate_until(asked, disable_tqdm=True) == wanted
        assert batched.get_model_info() == pytest.approx(alone.get_model_info())

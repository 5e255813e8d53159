"""`generate` as a user meets it: the text on standard output, what it took on standard error, one line for mistakes."""

from __future__ import annotations

import io
import re

import pytest
import tiny_files
import torch
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from forward_influence.cli.app import main
from forward_influence.cli.generate import _show
from forward_influence.compression import make_compressor
from forward_influence.compression.generation import generate
from forward_influence.models.loading import wrap_model


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *[str(a) for a in arguments]])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_files.save_tiny(tmp_path_factory.mktemp("model"))


PROMPT = "the tide turns twice a day, and ships wait for the tide"


def test_the_full_cache_writes_what_transformers_writes(capsys, folder):
    code, out, err = call(capsys, "--model", folder, "--compressor", "full", "--max-new-tokens", 20, PROMPT)
    assert code == 0, err
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")
    plain = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert out == "".join(
        c if c.isprintable() or c in "\n\t" else repr(c)[1:-1]
        for c in tokenizer.decode(plain, skip_special_tokens=True) + "\n"
    )


def test_the_report_says_what_is_held(capsys, folder):
    given = ["--model", folder, "--compressor", "infokv", "--budget", "20", "--every", "8", "--max-new-tokens", "30"]
    given += ["--compress-prompt"]
    code, _, err = call(capsys, *given, PROMPT)
    assert code == 0, err
    first, *others = err.splitlines()
    assert first == f"loading {folder} ..."
    lines = dict(line.split(": ", 1) for line in others)
    assert "30 generated" in lines["tokens"]
    seen = int(lines["tokens"].split("; ")[1].split()[0])
    length = int(lines["tokens"].split()[0])
    assert seen == length + 29
    after = (seen - length) % 8  # tokens since the last compression
    assert lines["held"] == f"{20 + after} of {seen} tokens in each of 3 layers"
    assert "had it been full" in lines["cache"]
    assert "tokens/s" in lines["speed"]
    assert "in 4 compressions, the head for entropy" in lines["scoring"]


def test_uneven_layers_are_listed(capsys, folder):
    given = ["--model", folder, "--compressor", "adakv", "--budget", "0.5", "--max-new-tokens", "4"]
    code, _, err = call(capsys, *given, PROMPT * 3)
    assert code == 0, err
    assert "on average; layer 0: " in err
    assert "layer 2: " in err


def test_a_prompt_from_a_file_and_from_standard_input(capsys, folder, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("a long text")
    monkeypatch.setattr("sys.stdin", io.StringIO("and a question"))
    given = ["--model", folder, "--compressor", "full", "--max-new-tokens", "2"]
    code, _, err = call(capsys, *given, "--file", tmp_path / "text.txt", "-")
    assert code == 0, err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert f"tokens: {len(tokenizer('a long text' + chr(10) * 2 + 'and a question')['input_ids'])} of" in err


def test_what_a_model_writes_cannot_steer_the_terminal(capsys):
    _show("a\x1b[31mred\r\nb\tc\x07")
    assert capsys.readouterr().out == "a\\x1b[31mred\\r\nb\tc\\x07"


def test_chat_and_system_messages(capsys):
    model = wrap_model(tiny_model("llama", torch.float32, vocab_size=VOCABULARY), byte_tokenizer(chat=True))
    shown: list[str] = []
    compressor = make_compressor("snapkv", "16")
    found = generate(model, "How deep is it?", compressor, max_new_tokens=12, show=shown.append)
    plain = generate(model, "How deep is it?", compressor, max_new_tokens=12, chat=False)
    assert found.prompt_tokens > plain.prompt_tokens == len("How deep is it?")
    assert "".join(shown) == found.text
    assert found.stats.compressions == 1
    assert found.tokens_per_second > 0
    again = [generate(model, "Why?", compressor, temperature=1.5, seed=s, max_new_tokens=12).text for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_several_prompts_are_written_as_each_alone(capsys, folder, tmp_path):
    """Side by side, from options and a file; one that ends early too. The reference is the command for each."""
    prompts = [PROMPT, "ships", "low tide at noon, high tide at six in the evening, and so on", "a"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts[2:]) + "\n\n")
    given = ["--model", folder, "--dtype", "float64", "--compressor", "infokv", "--budget", "0.4", "--every", "6"]
    given += ["--max-new-tokens", "20", "--temperature", "0.9", "--top-p", "0.9", "--seed", "3"]
    alone = [call(capsys, *given, prompt) for prompt in prompts]
    more = ["--prompt", prompts[1], "--prompt-file", tmp_path / "prompts.txt"]
    for batch in ("1", "3", "8"):
        code, out, err = call(capsys, *given, *more, "--batch", batch, prompts[0])
        assert code == 0, err
        texts = dict(zip(*[iter(part for part in re.split(r"^=== (.*)\n", out, flags=re.M) if part)] * 2, strict=True))
        assert texts == {f"prompt {i} of 4": text for i, (_, text, _) in enumerate(alone, 1)}
        held = [line for line in err.splitlines() if line.startswith(("tokens", "held", "right after"))]
        wanted = [line for _, _, e in alone for line in e.splitlines() if line.startswith(("tokens", "held", "right"))]
        assert sorted(held) == sorted(wanted)


def test_several_answers_are_drawn_with_seeds_of_their_own(capsys, folder):
    given = ["--model", folder, "--dtype", "float64", "--compressor", "random", "--budget", "0.5", "--every", "6"]
    given += ["--max-new-tokens", "12", "--temperature", "1.5"]
    alone = [call(capsys, *given, "--seed", seed, PROMPT)[1] for seed in (5, 6, 7)]
    code, out, err = call(capsys, *given, "--seed", "5", "--answers", "3", PROMPT)
    assert code == 0, err
    assert [part for part in re.split(r"=== prompt 1 of 1, answer \d of 3\n", out) if part] == alone
    assert len({*alone}) == 3
    assert "each, 3 side by side" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no prompt; give one in quotes"),
        (["  "], "the prompt is empty"),
        (["hi", "--chat"], "this model has no chat template"),
        (["hi", "--system", "be brief"], "a system message needs a chat template"),
        (["hi", "--budget", "0"], "selects nothing"),
        (["hi", "--budget", "1.5"], "is not below 1"),
        (["hi", "--compressor", "snapvk"], "unknown compressor 'snapvk' (did you mean 'snapkv'?)"),
        (["hi", "--compressor", "rpc"], "give every=1024"),
        (["hi", "--scheme", "pyramids"], "did you mean 'pyramid'"),
        (["hi", "--max-new-tokens", "9000"], "exceed the 512 positions"),
        (["hi", "--max-new-tokens", "0"], "at least 1"),
        (["hi", "--temperature", "-1"], "--temperature -1 is no temperature"),
        (["--file", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["hi", "--no-prefill"], "never compresses"),
        (["hi", "--prompt-file", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["hi", "--answers", "2"], "2 answers at temperature 0 would be the same"),
        (["hi", "--prompt", " ", "--max-new-tokens", "5"], "the prompt is empty"),
        (["hi", "--batch", "0"], "--batch 0 is too small"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, arguments, words):
    code, out, err = call(capsys, "--model", folder, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert [line for line in err.splitlines() if not line.startswith("loading ")] == err.splitlines()[-1:]


def test_a_short_prompt_stays_whole_unless_it_is_asked_for(capsys, folder):
    given = ["--model", folder, "--compressor", "infokv", "--budget", "0.25", "--every", "8", "--max-new-tokens", "17"]
    code, _, err = call(capsys, *given, PROMPT)
    assert code == 0, err
    length = int(err.split("tokens: ")[1].split()[0])
    assert f"leaves {length // 4} of the prompt's {length} tokens" in err and "(--compress-prompt compresses it)" in err
    assert f"held: {length + 4} of {length + 16} tokens" in err  # a quarter of 16 new ones
    code, _, err = call(capsys, *given, "--compress-prompt", PROMPT)
    assert code == 0 and "note: --budget 0.25 leaves" in err
    assert f"held: {(length + 16) // 4} of" in err


def test_bytes_are_those_of_what_is_held(capsys, folder):
    given = ["--model", folder, "--compressor", "full", "--max-new-tokens", "9"]
    code, _, err = call(capsys, *given, PROMPT)
    assert code == 0
    assert "(100%)" in err

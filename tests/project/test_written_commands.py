"""Every command in the pages is run, or its block says why it cannot be; what commands print as hints is run, too."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import typer
from tiny import tiny_model
from tiny_files import VOCABULARY, save_tiny, tiny_tokenizer
from written_commands import ROOT, commands_of, written_commands

from forward_influence.cli import app

WRITTEN = written_commands()
#: Those that are run here.
RUN = [c for c in WRITTEN if c.is_ours and not c.inline and not c.why]
GROUP = typer.main.get_command(app.build())
#: Commands that can say what they would do.
DRY = ("measure", "evaluate", "generate")
#: What reads what a command before it wrote; `test_a_page_is_run_from_top_to_bottom` has both.
READS = {"--config", "--results", "--add"}
#: What makes a command small; of an option that is given twice the last one holds.
SMALL = {
    "measure": ["--context", "140", "--continuation", "32", "--max-documents", "2", "--draws", "1"],
    "screen": ["--context", "140", "--continuation", "32", "--max-documents", "1", "--draws", "1"],
    "influence-map": ["--context", "24", "--continuation", "8", "--bin-width", "4"],
    "inspect": ["--context", "140"],
    "evaluate": ["--items", "1", "--length", "384"],
    "generate": ["--max-new-tokens", "8"],
}
#: Where spans decide how long contexts are.
BY_SPANS = ("--context", "--continuation", "--max-documents", "--draws")


def test_pages_hold_commands():
    """Reading them finds what is there."""
    text = (
        "Say `forward-influence plot R`.\n\n<!-- not run: why not -->\n\n```bash\nA=1 forward-influence measure \\\n"
        "    --out x > y  # z\nmake a && pip b\n```\n\n    fi models | head\n\n```python\nmake()\n```\n"
    )
    found = list(commands_of("p", text))
    assert [(c.words, c.why, c.inline) for c in found] == [
        (("forward-influence", "measure", "--out", "x"), "why not", False),
        (("make", "a"), "why not", False),
        (("pip", "b"), "why not", False),
        (("fi", "models"), "", False),
        (("forward-influence", "plot", "R"), "", True),
    ]
    assert sum(c.is_ours for c in WRITTEN) > 80


@pytest.mark.parametrize("command", [c for c in WRITTEN if not c.inline], ids=str)
def test_a_command_is_run_or_says_why_not(command):
    assert command.why or (command.is_ours and command.is_whole), (
        f"{command}: no test can run this; write <!-- not run: REASON --> before its block"
    )


def taken(words: tuple[str, ...] | list[str]) -> None:
    """Parse a command as the command line does; nothing is run.

    Raises:
        Exception: what click raises of an unknown command or option, or of a value of another kind.
    """
    command, rest = GROUP, list(words[1:])
    if rest[0] in ("--help", "--version", "--install-completion"):
        return
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert command is not GROUP, f"{words[1]} is no command"
    if rest != ["--help"]:
        command.make_context(words[1], rest)


@pytest.mark.parametrize("command", [c for c in WRITTEN if c.is_ours and c.is_whole], ids=str)
def test_a_command_is_one_that_there_is(command):
    if command.inline and command.words[1:] in (("plan",), ("generate",), ("compare",)):
        return  # the command's name alone
    taken(command.words)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what pages speak of: texts, a rule file, a report, and a tiny model with room for long texts."""
    folder = tmp_path_factory.mktemp("place")
    sizes = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "max_position_embeddings": 1 << 17}
    sizes |= {"num_hidden_layers": 13, "num_attention_heads": 4, "num_key_value_heads": 4}
    save_tiny(folder / "model", tiny_model("llama", torch.float32, **sizes))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "model")
    (folder / "my-texts").mkdir()
    for i in range(3):
        words = " ".join(f"word{(i + 7) * j % 97}" for j in range(1500))
        (folder / "my-texts" / f"{i}.txt").write_text(words, "utf-8")
    (folder / "report.txt").write_text("the tide turns twice a day " * 20, "utf-8")
    (folder / "questions.txt").write_text("How deep is it?\nWhen is high tide?\n", "utf-8")
    (folder / "plan.yaml").write_text(PLAN, "utf-8")
    write_rules(folder)
    return folder


PLAN = """
title: Does entropy last where attention fades?
documents: 6
zones: [far]
questions:
  - {ask: "Does attention matter more than random entries?", rule: attention, over: random, expect: more}
"""
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
RULES = '''
from dataclasses import dataclass

from forward_influence.selectors import Selector, selector


@selector("rare-and-uncertain-TAG", needs={"surprisal", "entropy"})
def rare_and_uncertain(trace):
    """As in the README."""
    return trace.surprisal * trace.entropy


def rare(trace):
    """The least frequent ids."""
    return -trace.tokens.float()


mine = rare


@selector("my-rule-TAG")
@dataclass(frozen=True, kw_only=True)
class MyRule(Selector):
    """Keeps the first of every few tokens."""

    width: int = 2

    def scores(self, trace):
        return (trace.tokens % self.width).float()


@selector("late-rare-TAG")
@dataclass(frozen=True, kw_only=True)
class LateRare(Selector):
    """Rare and late."""

    power: float = 1.0

    def scores(self, trace):
        return trace.tokens.float() ** self.power
'''


def write_rules(folder: Path) -> None:
    """Rule files under the names that pages have; what they register bears a name for each file."""
    for name in ("rules.py", "path/to/rules.py", "package/module.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tag = hashlib.sha256(str(folder / name).encode()).hexdigest()[:8]
        (folder / name).write_text(RULES.replace("TAG", tag), "utf-8")


def copied(place: Path, to: Path) -> None:
    """The folder once more."""
    shutil.copytree(place, to, dirs_exist_ok=True)
    write_rules(to)


def with_the_tiny_model(words: list[str], place: Path) -> list[str]:
    """The same command with a tiny model, if it takes a model."""
    command = GROUP.commands[words[0]]
    takes = any("--model" in option.opts for option in command.params)
    return [*words, "--model", str(place / "model")] if takes and words[0] not in ("plan", "documents") else words


def run(words: list[str], capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("command", [c for c in RUN if c.words[1] in DRY and not READS & {*c.words}], ids=str)
def test_what_a_command_would_do(command, place, capsys, monkeypatch):
    """Everything is checked but the run itself: documents, rules, budgets, lengths, costs."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    words = with_the_tiny_model(list(command.words[1:]), place)
    if words[0] == "measure":
        words += ["--max-documents", "6" if "--plan" in words else "2"]
    code, out, err = run([*words, "--dry-run"], capsys)
    assert code == 0, err
    assert out.startswith(f"# What `forward-influence {words[0]} --config FILE` does")


PAGES = sorted({c.page for c in RUN})


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_run_from_top_to_bottom(page, place, tmp_path, capsys, monkeypatch):
    """In a folder of its own, with a tiny model and short texts; what one command writes the next one reads."""
    copied(place, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (c for c in RUN if c.page == page):
        words = with_the_tiny_model(list(command.words[1:]), tmp_path)
        dry = "--dry-run" in words
        if not (dry or "--measure-on" in words or "--results" in words):
            words += SMALL.get(words[0], [])
        elif "--measure-on" in words and words[0] == "measure":
            words += ["--max-documents", "2", "--draws", "1"]
        if "--every" in words and words[0] == "measure":
            words += ["--continuation", "144"]  # so that it comes to a compression
        if "--plan" in words:
            words += ["--max-documents", "6"]  # as many as the plan asks for
        if words[0] == "quickstart":
            words += ["--documents", "my-texts"]
        code, out, err = run(words, capsys)
        assert code == 0, f"{shlex.join(words)}\n{err}"
        if dry:
            Path("experiment.yaml").write_text(out, "utf-8")


HINT = re.compile(r"forward-influence (?:--\S+ )?[a-z][^\n`;)]*")


def hints(text: str) -> list[str]:
    """Commands within what a command prints."""
    return [hint.strip().rstrip(".") for hint in HINT.findall(text)]


def test_hints_are_commands_that_work(place, tmp_path, capsys, monkeypatch):
    """Every command that commands print is run, in a folder where what they speak of is."""
    monkeypatch.chdir(tmp_path)
    copied(place, tmp_path)
    model, texts = ["--model", "model"], ["--documents", "my-texts"]
    sizes = ["--context", "140", "--continuation", "32"]
    printing = [
        ["measure", *model, *texts, *sizes, "--selector", "recent", "--selector", "random", "--draws", "1"],
        ["quickstart", *model, *texts],
        ["evaluate", *model, "--items", "1", "--length", "256", "--task", "needle", "--compressor", "recent",
         "--protocol", "seen"],
        ["compressors"], ["selectors"], ["selectors", "attention"], ["selectors", "rules.py:LateRare"],
        ["documents"], ["models"],
        ["measure", "--selector", "atention"], ["generate", "hi", "--compressor", "snapvk"],
        ["compare", "nowhere"], ["measure", "--bogus"],
    ]  # fmt: skip
    seen: list[str] = []
    for words in printing:
        _, out, err = run(words, capsys)
        seen += [hint for hint in hints(out + err) if hint not in seen]
    for hint in seen:
        words = shlex.split(hint.replace("NAME", "attention"))[1:]
        if words[:2] == ["models", "pull"] or words[-1:] == ["--model", "smollm2-135m"]:
            taken(["forward-influence", *words])  # fetches a model
            continue
        words = words if words[0] in ("plot", "compare") else with_the_tiny_model(words, tmp_path)
        small = [*SMALL.get(words[0], []), *texts] if words[0] == "measure" and "--help" not in words else []
        code, _, err = run([*words, *small], capsys)
        assert code == 0, f"{hint}\n{err}"
    for start in ("plot runs/", "compare runs/", "plot evaluations/", "selectors attention", "measure --selector"):
        assert any(start in hint.replace("NAME", "attention") for hint in seen), (start, seen)


def test_hints_in_the_code_are_commands_that_there_are():
    """Those in messages that are printed seldom: their names and options exist."""
    files = [p for folder in ("cli", "forward_influence", "analysis", "data") for p in (ROOT / folder).rglob("*.py")]
    found = [hint for path in files for hint in re.findall(r"`(forward-influence [^`{]+)`", path.read_text("utf-8"))]
    assert len(found) >= 8
    for hint in found:
        words = shlex.split(hint.replace("--config FILE", ""))
        if len(words) > 2:
            taken(words)
        else:
            assert words[1] in GROUP.commands, hint

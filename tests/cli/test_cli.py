"""The command line as a newcomer meets it: one line for what is wrong, the right exit code, a run for what is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_files

from forward_influence.cli.app import main
from forward_influence.storage.run import open_run


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and documents long enough for it."""
    folder = tmp_path_factory.mktemp("place")
    tiny_files.save_tiny(folder / "model")
    (folder / "texts").mkdir()
    for i in range(3):
        (folder / "texts" / f"long {i}.txt").write_text(" ".join(f"word{(i + 7) * j % 97}" for j in range(400)))
    (folder / "texts" / "short.txt").write_text("too short")
    return folder


def common(place: Path) -> list[str]:
    sizes = ["--context", "60", "--continuation", "40", "--protect-last", "8"]
    return ["measure", "--model", str(place / "model"), "--documents", str(place / "texts"), *sizes]


def without_documents(place: Path) -> list[str]:
    arguments = common(place)
    at = arguments.index("--documents")
    return arguments[:at] + arguments[at + 2 :]


def test_measure_writes_a_run_and_prints_the_table(capsys, place, tmp_path):
    rules = ["--selector", "attention:window=8", "--selector", "entropy", "--selector", "random"]
    code, out, err = call(capsys, *common(place), *rules, "--out", tmp_path / "run")
    assert code == 0, err
    assert "attention:window=8" in out
    assert "skipped short: 9 tokens, 100 needed" in err
    assert str(tmp_path / "run") in out
    run = open_run(tmp_path / "run")
    assert len(run.measured()) == 3
    assert run.manifest["skipped"][0]["name"] == "short"
    assert "--selector" in run.manifest["command"] or run.manifest["command"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "parts").iterdir()}
    code, _, _ = call(capsys, *common(place), *rules, "--out", tmp_path / "run")
    assert code == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "parts").iterdir()}
    code, _, err = call(capsys, *common(place), "--selector", "first", "--out", tmp_path / "run")
    assert code == 2
    assert "another configuration (selectors:" in err
    code, out, _ = call(capsys, "plot", tmp_path / "run", "--out", tmp_path / "decay.svg", "--bin-width", "10")
    assert code == 0
    assert (tmp_path / "decay.svg").read_text().lstrip().startswith("<?xml")


def test_a_rule_of_ones_own_from_a_file(capsys, place, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def rare(trace):\n    return -trace.tokens.float()\n")
    code, out, err = call(capsys, *common(place), "--selector", f"{rules}:rare", "--out", tmp_path / "run")
    assert code == 0, err
    assert "rules.py:rare" in out


def test_default_folder_is_the_same_for_the_same_request(capsys, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        code, _, err = call(capsys, *common(place), "--selector", "recent", "--max-documents", "1")
        assert code == 0, err
    assert len(list((tmp_path / "runs").iterdir())) == 1


def _no_weights(*arguments):
    raise AssertionError("weights were read before the mistake was found")


@pytest.mark.parametrize(
    ("arguments", "words", "exit_code"),
    [
        (["--selector", "infokv:tau=nan"], "tau=nan is no number from 0", 2),
        (["--selector", "attention:window=70"], "attention:window=70 observes from 70 tokens", 2),
        (["--continuation", "2"], "give at least 3", 2),
        (["--selector", "entrpy"], "unknown rule 'entrpy' (did you mean 'entropy'?)", 2),
        (["--selector", "entropy:topk=5"], "did you mean 'top_k'", 2),
        (["--selector", "nowhere/rules.py:x"], "does not exist", 2),
        (["--budget", "0"], "selects nothing", 2),
        (["--budget", "0.95"], "of 48 candidates", 2),
        (["--documents", "missing.txt"], "missing.txt", 2),
        (["--context", "490"], "made for", 2),
        (["--model", "smollm3-135"], "smollm", 2),
        (["--bogus"], "--bogus", 2),
        (["--context", "many"], "--context", 2),
        (["--device", "warp"], "warp", 2),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, place, monkeypatch, arguments, words, exit_code):
    """And no weights are read before it is said; --device belongs to the loading itself."""
    if "--device" not in arguments:
        monkeypatch.setattr("forward_influence.models.loading._load_weights", _no_weights)
    rule = [] if "--selector" in arguments else ["--selector", "recent"]
    code, _, err = call(capsys, *common(place), *rule, *arguments)
    assert code == exit_code
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert words in lines[-1]
    before = [line for line in lines[:-1] if not line.startswith("skipped")]
    assert not before or "--device" in arguments


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def bad(trace):\n    return trace.surprisal\n", 'declares it: needs={"surprisal"}'),
        ("def bad(trace):\n    return trace.tokens[:3].float()\n", "shape (3,)"),
        ("def bad(trace):\n    return trace.tokens.float() * float('nan')\n", "NaN for"),
        ("def bad(trace):\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def bad(trace):\n    return 'high'\n", "returned str"),
        ("def bad(trace):\n    return trace.tokens.float().repeat(3, 1)\n", "layers or kv heads cannot be told"),
        ("def bad(trace):\n    return trace.keys(0).mul_(2)[0].sum(-1)\n", "changes the trace in place"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_with_its_name(capsys, place, tmp_path, body, words):
    (tmp_path / "rules.py").write_text(body)
    rule = f"{tmp_path / 'rules.py'}:bad"
    code, _, err = call(capsys, *common(place), "--selector", rule, "--out", tmp_path / "run")
    assert code == 2
    assert words in err
    assert "bad" in err
    assert len([line for line in err.splitlines() if "bad" in line]) == 1, "once, not per document"
    assert "Traceback" not in err


def test_a_rule_that_was_edited_is_another_run(capsys, place, tmp_path):
    file = tmp_path / "rules.py"
    given = ["--selector", f"position-matched:of={file}:mine", "--out", str(tmp_path / "run"), "--max-documents", "1"]
    file.write_text("def mine(trace):\n    return -trace.tokens.float()\n")
    given[1] = f"{file}:mine"
    assert call(capsys, *common(place), *given)[0] == 0
    assert call(capsys, *common(place), *given)[0] == 0
    file.write_text("def mine(trace):\n    return trace.tokens.float()\n")
    code, _, err = call(capsys, *common(place), *given)
    assert code == 2
    assert "another configuration (rule_sources." in err


def test_a_folder_in_which_nothing_was_measured_takes_the_corrected_command(capsys, place, tmp_path):
    file = tmp_path / "rules.py"
    file.write_text("def bad(trace):\n    return 1 / 0\n\n\ndef good(trace):\n    return trace.tokens.float()\n")
    given = ["--out", str(tmp_path / "run"), "--max-documents", "1"]
    assert call(capsys, *common(place), "--selector", f"{file}:bad", *given)[0] == 2
    code, _, err = call(capsys, *common(place), "--selector", f"{file}:good", *given)
    assert code == 0, err
    assert open_run(tmp_path / "run").configuration["selectors"] == [f"{file}:good"]


def test_verify_says_what_it_found(capsys, place, tmp_path):
    given = ["--selector", "recent", "--max-documents", "2", "--verify", "--out", str(tmp_path / "run")]
    code, out, err = call(capsys, *common(place), *given)
    assert code == 0, err
    assert "verified: 2 conditions (one per document and segment) against a masked full pass" in out
    (tmp_path / "other").mkdir()
    unverified = [*given[:-3], "--out", str(tmp_path / "other")]
    call(capsys, *common(place), *unverified)
    assert "verified: nothing" in call(capsys, *common(place), *given[:-1], str(tmp_path / "other"))[1]


def test_what_is_being_done_names_the_document(capsys, place, tmp_path, monkeypatch):
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "forward_influence.cli.progress.TerminalProgress.advance",
        lambda self, tokens, what: told.append((tokens, what)),
    )
    totals: list[int] = []
    monkeypatch.setattr(
        "forward_influence.cli.progress.TerminalProgress.begin", lambda self, total, what: totals.append(total)
    )
    code, _, err = call(capsys, *common(place), "--selector", "recent", "--out", tmp_path / "run")
    assert code == 0, err
    assert {what.split(": ")[0].split(" ", 1)[0] for _, what in told} == {"1/3", "2/3", "3/3"}
    assert {what.split(": ", 1)[1] for _, what in told} >= {"context", "full cache", "comparing", "recent at 0.2"}
    assert all("long " in what for _, what in told)
    assert sum(tokens for tokens, _ in told) == totals[0]


def test_documents_that_are_empty_binary_or_missing(capsys, place, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02" * 100)
    for name in ("empty.txt", "binary.txt"):
        documents = ["--documents", str(tmp_path / name), "--selector", "recent"]
        code, _, err = call(capsys, *without_documents(place), *documents)
        assert code == 2
        assert name in err


def test_all_documents_too_short(capsys, place):
    short = ["--documents", str(place / "texts" / "short.txt"), "--selector", "recent"]
    code, _, err = call(capsys, *without_documents(place), *short)
    assert code == 2
    assert "long enough" in err


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "forward_influence", "--debug", "measure", "--budget", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    done = subprocess.run([c for c in command if c != "--debug"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_version_and_help(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith("forward-influence ")
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert "measure" in out


def test_manifest_says_how_to_repeat(capsys, place, tmp_path):
    call(capsys, *common(place), "--selector", "recent", "--max-documents", "1", "--out", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["versions"]["torch"]
    assert manifest["model"]["fingerprint"]
    assert manifest["configuration"]["protect_last"] == 8
    assert manifest["documents"][0]["fingerprint"]


def test_what_is_about_to_be_measured_is_said_before(capsys, place, tmp_path):
    asked = [*common(place), "--selector", "recent", "--max-documents", "2", "--out", tmp_path / "run"]
    code, _, err = call(capsys, *asked)
    assert code == 0
    lines = dict(line.split(None, 1) for line in err.splitlines())
    assert "2 of 3 are long enough for 60 + 40 tokens" in lines["documents"] or "2 with 60 + 40" in lines["documents"]
    assert lines["budget"] == "0.2: drops 12 of 48 candidates per layer and head (20% of the 60 context tokens)"
    assert "second" in lines["time"]
    assert err.index("documents ") < err.index("budget ") < err.index("loading ") < err.index("time ")
    _, _, err = call(capsys, *asked)
    assert "all of it was measured before" in err


@pytest.mark.parametrize(("sizes", "change"), [([900, 380], "--context"), ([900, 900], "--max-documents")])
def test_too_few_documents_get_a_command_that_measures_enough(capsys, place, tmp_path, monkeypatch, sizes, change):
    import shlex

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(8):
        words = [f"word{(i + 7) * j % 97}" for j in range(400)]
        (folder / f"{i}.txt").write_text(" ".join(words)[: sizes[i % 2]])
    given = ["--context", "120", "--continuation", "280", "--protect-last", "8", "--selector", "recent"]
    most = ["--max-documents", "3"] if change == "--max-documents" else []
    asked = ["measure", "--model", str(place / "model"), "--documents", str(folder), *given, *most]
    code, _, err = call(capsys, *asked)
    assert code == 0
    [line] = [line for line in err.splitlines() if line.startswith("too few")]
    command = shlex.split(line.partition("this would do: ")[2])
    assert command[0] == "forward-influence" and change in command
    code, out, err = call(capsys, *command[1:])
    assert code == 0 and "too few" not in err
    assert len(open_run(out.split("run: ")[1].splitlines()[0]).measured()) >= 6


def test_quickstart_gives_a_picture_and_three_sentences(capsys, place, tmp_path, monkeypatch):
    import torch
    from tiny import tiny_model

    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": tiny_files.VOCABULARY, "tie_word_embeddings": False, "max_position_embeddings": 1024}
    tiny_files.save_tiny(tmp_path / "model", tiny_model("llama", torch.float32, **sizes))
    code, out, err = call(capsys, "quickstart", "--model", "model", "--documents", place / "texts")
    assert code == 0, err
    sentences = [line for line in out.splitlines() if line.endswith(".")]
    assert len(sentences) == 3
    assert sentences[0].startswith("Without the tokens that attention ranks highest, the next 64 predictions shift ")
    assert "as many random entries" in sentences[0] and "as many random whole tokens" in sentences[1]
    assert sentences[2].startswith("2 documents can only show")
    assert (tmp_path / "runs" / "quickstart" / "plots" / "decay.png").read_bytes().startswith(b"\x89PNG")
    run = open_run("runs/quickstart")
    assert f" {_near_ratio(run, 'attention', 'random'):.2g} times as much" in sentences[0]
    assert f" {_near_ratio(run, 'entropy', 'random:per=token'):.2g} times as much" in sentences[1]


def _near_ratio(run, rule: str, control: str) -> float:
    """A rule's mean KL over the first 64 positions as a multiple of its control's: geometric mean over documents."""
    import numpy as np

    frame = run.curves().query("kind == 'condition'")
    floors = run.curves().query("kind == 'noise_floor'")
    means = {}
    for name in (rule, control):
        for document, rows in frame[frame["selector"] == name].groupby("document"):
            floor = floors[floors["document"] == document]["kl"].map(np.mean).mean()
            means[name, document] = np.mean([np.mean(kl[:64]) for kl in rows["kl"]]) - floor
    documents = {document for _, document in means}
    return float(np.exp(np.mean([np.log(means[rule, d] / means[control, d]) for d in documents])))


def test_results_as_json(capsys, place, tmp_path):
    code, out, err = call(capsys, *common(place), "--selector", "recent", "--json", "--out", tmp_path / "run")
    assert code == 0, err
    found = json.loads(out)
    assert found["run"] == str(tmp_path / "run") and found["measured"] == found["documents"] == 3
    [rule] = found["rules"]
    frame = open_run(tmp_path / "run").curves().query("kind == 'condition'")
    assert rule["selector"] == "recent" and rule["near"] > 0 and len(frame) == 3
    code, out, _ = call(capsys, "plan", "--model", place / "model", "--count", "7", "--tflops", "1", "--context", "200",
                        "--continuation", "100", "--json")  # fmt: skip
    assert code == 0
    planned = json.loads(out)
    assert planned["documents"] == 7 and planned["throughput"] == 1e12 and planned["memory_bytes"] > 0
    assert planned["hours"] == pytest.approx(planned["operations"] / 1e12 / 3600)
    code, out, _ = call(capsys, "generate", "--model", place / "model", "--compressor", "full", "--max-new-tokens", "5",
                        "--json", "the tide")  # fmt: skip
    assert code == 0
    [text] = json.loads(out)
    assert text["new_tokens"] == 5 and text["seen"] == text["prompt_tokens"] + 4
    assert text["bytes"] == text["full_bytes"] and {n for layer in text["held"] for n in layer} == {text["seen"]}

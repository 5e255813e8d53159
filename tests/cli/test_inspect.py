"""Token tables: ranks, selections, escaping, exports, and the command's refusals."""

from __future__ import annotations

import dataclasses
import re

import pytest
import tiny_data
import torch
from typer.testing import CliRunner

from forward_influence.cli import inspect as command
from forward_influence.cli.app import build
from forward_influence.errors import UsageError
from forward_influence.measurement.inspection import html_page, inspect_document, scores_table
from forward_influence.measurement.request import Request


@pytest.fixture(scope="module")
def found():
    request = Request(
        selectors=("attention:window=8", "recent"), context=60, continuation=3, protect_last=8, budgets=("0.2",)
    )
    return inspect_document(tiny_data.model(), tiny_data.documents(1, 62)[0], request)


def test_views_say_what_is_selected(found):
    recent = found.view(1, None, None)
    assert recent.selected.tolist() == [0.0] * 40 + [1.0] * 12 + [0.0] * 8
    assert recent.ranks[4:52].tolist() == pytest.approx([i / 47 for i in range(48)])
    one = found.view(0, 2, 1)
    assert set(one.selected.tolist()) == {0.0, 1.0} and int(one.selected.sum()) == 12
    assert torch.equal(one.selected.bool(), found.masks[0][2, 1])
    assert float(one.ranks[one.selected.bool()].min()) > float(one.ranks[4:52][~one.selected[4:52].bool()].max())
    with pytest.raises(UsageError, match="`layer` 9"):
        found.view(0, 9, None)
    with pytest.raises(UsageError, match="kv heads 0 to 1"):
        found.view(0, None, 2)


def test_the_page_escapes_everything(found):
    nasty = "<script>alert('x')</script>&\""
    hostile = dataclasses.replace(found, name=nasty, rules=[nasty, "recent"], pieces=[nasty] * 60)
    page = html_page(hostile, None, None)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count('class="s"') >= 12 and page.count("<section>") == 2


def test_scores_as_a_table(found):
    table = scores_table(found)
    assert len(table) == 2 * 3 * 2 * 60
    part = table[(table["rule"] == "recent") & (table["layer"] == 1) & (table["head"] == 0)]
    assert part["score"].tolist() == list(range(60)) and int(part["selected"].sum()) == 12
    assert int(part["candidate"].sum()) == 48


def test_terminal(found, capsys):
    nasty = dataclasses.replace(found, pieces=["[red]x\x1b[2J"] * 60)
    command._show(nasty, 1, None)
    shown = capsys.readouterr().out
    assert "[red]x" in shown and "\x1b[2J" not in shown and "recent" in shown
    words = " ".join(shown.split())
    assert "layer 1, all heads; budget 0.2 selects 12 of 48 candidates per layer and head (60 tokens, 12" in words
    assert "would leave the cache" in words and "in [brackets] is selected by at least half of" in words


def test_without_colours_what_is_selected_is_in_brackets(found, capsys):
    words = dataclasses.replace(found, pieces=["a"] + [" b"] * 59, rules=found.rules[1:], masks=found.masks[1:])
    command._show(words, None, None)
    shown = capsys.readouterr().out
    text = " ".join(line.strip("│ ") for line in shown.splitlines() if line.startswith("│"))
    assert text == " ".join(["a"] + ["b"] * 39 + ["[b"] + ["b"] * 10 + ["b]"] + ["b"] * 8)


def test_with_colours_it_is_shaded_and_underlined(found, capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("forward_influence.cli.tables.console", lambda: Console(force_terminal=True, width=100))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    command._show(found, None, None)
    shown = capsys.readouterr().out
    assert "\x1b[1;4;" in shown and "[" not in re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "bold and underlined is selected" in " ".join(shown.split())


def test_captions_say_what_the_budget_means(found):
    kept = dataclasses.replace(found, mode="keep", budget="44", number=32)
    assert kept.caption(None, 1).startswith("all layers, head 1; budget 44 selects 32 of 48 candidates")
    assert kept.caption(None, 1).endswith("would stay in the cache, with the protected ones")
    assert kept.legend(2, 1).endswith("underlined is selected")
    page = html_page(kept, None, None)
    assert "budget 44 selects 32 of 48 candidates" in page and "The stronger the shade, the higher the rank" in page


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--selector", "a", "--selector", "b", "--selector", "c"], "one or two"),
        (["--budget", "0.1", "--budget", "0.2"], "give `budgets` once"),
        (["--out", "x.txt"], "must end in .html or .parquet"),
    ],
)
def test_refusals(given, words):
    result = CliRunner().invoke(build(), ["inspect", *given])
    assert isinstance(result.exception, UsageError) and words in str(result.exception)


@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_names_of_rules_are_whole_at_any_width(found, capsys, monkeypatch, width):
    from rich.console import Console

    monkeypatch.setattr("forward_influence.cli.tables.console", lambda: Console(width=width))
    names = ("position-matched:of=attention,stratum=16", "recent")
    command._show(dataclasses.replace(found, rules=names), None, None)
    words = capsys.readouterr().out.split()
    assert all(name in words for name in names)

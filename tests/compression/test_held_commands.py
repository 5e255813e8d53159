"""Sizes and protected tokens as a newcomer asks for them on the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from test_cli import call, place  # noqa: F401

from forward_influence.storage.run import open_run


def common(place: Path) -> list[str]:  # noqa: F811
    where = ["measure", "--model", str(place / "model"), "--documents", str(place / "texts"), "--max-documents", "1"]
    return [*where, "--context", "60", "--continuation", "40", "--every", "10"]


def compressors(*names: str) -> list[str]:
    return [word for name in names for word in ("--compressor", name)]


def test_match_held_and_a_share_that_is_protected(capsys, place, tmp_path):  # noqa: F811
    names = compressors("rpc:window=4", "random-protected", "infokv", "h2o")
    code, out, err = call(
        capsys, *common(place), *names, "--match-held", "76", "--protect-last", "0.25", "--out", tmp_path / "run"
    )
    assert code == 0, err
    for cell in ("76 = 64 + 12", "76 = 23 + 53", "76 = 42 + 34"):
        assert cell in out
    assert "the first 4 and the last 19 (infokv)" in out
    assert "not at equal size" not in out
    run = open_run(tmp_path / "run")
    assert (run.configuration["match_held"], run.configuration["protect_last"]) == ([76], 0.25)
    frame = run.curves()
    assert set(frame.loc[frame["kind"] == "condition", "held"]) == {76}
    # the same command continues; another number is another run
    code, _, _ = call(
        capsys, *common(place), *names, "--match-held", "76", "--protect-last", "0.25", "--out", tmp_path / "run"
    )
    assert code == 0
    code, _, err = call(
        capsys, *common(place), *names, "--match-held", "76", "--protect-last", "8", "--out", tmp_path / "run"
    )
    assert code == 2
    assert "protect_last: 0.25 there, 8 now" in err
    for command in ("compare", "report"):
        options = ["--out", tmp_path / "r.html"] if command == "report" else []
        code, out, err = call(capsys, command, tmp_path / "run", "--baseline", "infokv", *options)
        assert code == 0, err
    code, out, _ = call(capsys, "compare", tmp_path / "run", "--baseline", "infokv", "--budget", "held=76")
    assert code == 0
    assert "76 = 23 + 53" in out
    code, out, err = call(capsys, "measure", "--add", tmp_path / "run", "--compressor", "knorm")
    assert code == 0, err
    assert "the last 19 (infokv, knorm)" in out
    code, _, err = call(capsys, "measure", "--add", tmp_path / "run", "--selector", "recent")
    assert code == 2
    assert "has no budget, which rules need" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--match-held", "62", *compressors("rpc")],
            "rpc keeps the prompt whole, 60 tokens and a window of 32 on top",
        ),
        (["--match-held", "50", "--budget", "0.2", *compressors("infokv")], "give one of them"),
        (["--match-held", "500", *compressors("infokv")], "no more than 100 tokens are seen"),
        (["--match-held", "0", *compressors("infokv")], "no number of entries to hold"),
        (["--protect-last", "0.7", *compressors("infokv")], "at most 0.5"),
        (["--protect-last", "many", *compressors("infokv")], "is not a number"),
        (["--protect-last", "0", *compressors("infokv")], "give --protect-last 1"),
    ],
)
def test_refusals_are_one_line(capsys, place, tmp_path, options, said):  # noqa: F811
    code, out, err = call(capsys, *common(place), *options, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_rules_take_a_count_only_and_need_a_compressor_to_match(capsys, place, tmp_path):  # noqa: F811
    rules = ["measure", "--model", str(place / "model"), "--documents", str(place / "texts"), "--selector", "recent"]
    sizes = ["--context", "60", "--continuation", "40"]
    for options, said in (
        (["--protect-last", "0.25"], "give a count like 64"),
        (["--protect-last", "8", "--match-held", "20"], "name one with --compressor"),
    ):
        code, _, err = call(capsys, *rules, *sizes, *options, "--out", tmp_path / "run")
        assert code == 2
        assert said in err


def test_every_compressor_pins_what_was_asked_and_the_table_prints_what_was(capsys, place, tmp_path):  # noqa: F811
    """20 of 100 tokens: "the last 64" was printed where 10 are pinned."""
    code, out, err = call(
        capsys, *common(place), *compressors("infokv", "knorm"), "--budget", "0.2", "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert "20 = 14 + 6" in out
    assert "pinned: the first 4 and the last 10 (infokv, knorm)" in out
    assert "last 64" not in out
    assert "more than half of what is held is pinned, which mutes differences: 14 of 20 (infokv, knorm)" in out


def test_plan_knows_it(capsys, place):  # noqa: F811
    code, out, err = call(
        capsys, "plan", "--model", str(place / "model"), "--count", "1", "--context", "60", "--continuation", "40",
        *compressors("infokv"), "--match-held", "20", "--tflops", "1",
    )  # fmt: skip
    assert code == 0, err
    assert "1, 1 conditions each" in out


def test_generate_says_what_was_pinned_and_chosen(capsys, place):  # noqa: F811
    code, _, err = call(
        capsys, "generate", "--model", str(place / "model"), *compressors("attention"), "--budget", "held=20",
        "--protect-last", "0.25", "--every", "4", "--max-new-tokens", "10", "--no-chat", "word1 word2 word3 " * 12,
    )  # fmt: skip
    assert code == 0, err
    assert "right after the last compression: 20 = 9 + 11 (pinned, the first 4 and the last 5, and chosen)" in err
    short = ["--max-new-tokens", "3", "--no-chat", "word1"]
    code, _, err = call(
        capsys, "generate", "--model", str(place / "model"), *compressors("full"), *short
    )  # fmt: skip
    assert code == 0
    assert "right after" not in err


def test_a_matched_evaluation(capsys, place, tmp_path):  # noqa: F811
    from test_evaluation import byte_tokenizer, loaded

    folder = tmp_path / "model"
    copy.deepcopy(loaded().model).float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    loaded.cache_clear()
    asked = ["evaluate", "--model", str(folder), *compressors("attention", "h2o"), "--task", "facts:people=1"]
    asked += ["--length", "500", "--items", "1", "--protocol", "seen"]
    code, out, err = call(
        capsys, *asked, "--match-held", "80", "--protect-last", "8", "--out", tmp_path / "e", "--format", "json"
    )
    assert code == 0, err
    rows = {row["compressor"]: row for row in json.loads(out)}
    assert {name: (row["held"], row["pinned"]) for name, row in rows.items() if name != "full"} == {
        "attention": (80, 12), "h2o": (80, 44), "random": (80, 12)
    }  # fmt: skip
    code, _, err = call(capsys, *asked, "--match-held", "80", "--budget", "0.2", "--out", tmp_path / "f")
    assert code == 2
    assert "give one of them" in err

"""Token classes and the token profile: known words, and a plain second implementation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import WORDS, Decay, simulate

from forward_influence.analysis.measures import token_classes, tokens
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.selections import Context, of_several, read_selections

RULES = {name: Decay() for name in ("attention", "entropy", "random")}


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " nation", " of", " free", " people"], "fcfcc"),
        ([" The", " nation", "\n", " Congress", " 1862"], "fcncd"),
        (["The", " na", "tion", ",", " and"], "fccpf"),
        ([" with", "in", " the", " with", "hold"], "fffcc"),
        ([" don", "'t", " it", "'s", " won", "'t"], "ffffff"),
        ([" don", "’t", " won"], "ffc"),
        (["<|im_start|>", "user", "\n\n", "   ", "</s>"], "xcnsx"),
        (["(", "the", ")", " 3", ".", "14", "—"], "pfpdpdp"),
        ([" <b>bold</b>", ' "The', "ing"], "ccc"),
        (["\r\n", "!", " a", "bout"], "npff"),
    ],
)
def test_classes_of_known_pieces(pieces: list[str], expected: str) -> None:
    letters = {
        "f": "function word",
        "c": "content word",
        "d": "digits",
        "p": "punctuation",
        "n": "newline",
        "s": "space",
        "x": "special",
    }
    assert token_classes.classes(pieces).tolist() == [letters[e] for e in expected]


def test_word_parts() -> None:
    parts = token_classes.word_parts(["Un", "believ", "able", ",", " words", "\n", "begin", "ning", " 12", "th"])
    short = ["".join(w[0] for w in p.split()) for p in parts]
    assert short == ["ws", "wc", "wc", "", "ws", "", "ws", "wc", "", "ws"]
    found = token_classes.words("Unbelievable, it's")
    assert found == [(0, 12, False), (14, 16, True), (16, 18, True)]


def test_repetition_marks_the_first_of_each_id() -> None:
    made = token_classes.repetition(np.array([5, 3, 5, 5, 3, 9]))
    assert [m == "repeated" for m in made] == [False, False, True, True, True, False]


def test_frequency_bands_hold_a_quarter_each() -> None:
    counts = {**dict.fromkeys(range(100), 1), **{100 + i: 10 for i in range(10)}, 200: 100, 201: 101}
    bands = token_classes.frequency_bands(counts)
    assert [bands[0], bands[105], bands[200], bands[201]] == list(token_classes.BANDS)
    assert token_classes.frequency_bands({}) == {}
    rng = np.random.default_rng(0)
    many = {i: int(c) for i, c in enumerate(rng.zipf(1.6, 5000).clip(max=400))}
    mass = pd.Series(many).groupby(pd.Series(token_classes.frequency_bands(many))).sum()
    assert mass.sum() == sum(many.values())


def test_positions_are_deciles_of_the_candidates() -> None:
    context = Context(np.arange(30), [" x"] * 30, 5, 25)
    position = tokens.groups_of(context, dict.fromkeys(range(30), token_classes.BANDS[0]))["position"]
    assert position[:5].tolist() == [""] * 5
    assert position[25:].tolist() == [""] * 5
    assert position[5:25].tolist() == [g for g in tokens.DIVISIONS["position"] for _ in range(2)]


def test_shares_of_a_run_equal_plain_loops(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=3, segments=2, draws=2, save_selections=True)
    frame = tokens.token_shares(run)
    word_class = {
        "the": "function word",
        " of": "function word",
        " and": "function word",
        " 1862": "digits",
        ",": "punctuation",
        ".": "punctuation",
        "\n": "newline",
    }
    shares: dict[tuple[str, str, str], list[float]] = {}
    bases: dict[tuple[str, str], list[float]] = {}
    for document in read_selections(run):
        name = document.document["name"]
        for choice in document.choices:
            context = document.contexts[choice.segment]
            for group in ("digits", "punctuation", "newline"):
                inside = total = base = 0
                for i in range(context.first, context.stop):
                    is_group = word_class.get(WORDS[context.tokens[i]]) == group
                    base += is_group
                    for layer in range(2):
                        for head in range(2):
                            total += int(choice.selection[layer, head, i])
                            inside += int(choice.selection[layer, head, i] and is_group)
                shares.setdefault((name, choice.selector, group), []).append(inside / total)
                bases.setdefault((name, group), []).append(base / (context.stop - context.first))
    part = frame[(frame["division"] == "class") & frame["group"].isin(["digits", "punctuation", "newline"])]
    assert len(part) == 3 * 3 * 3
    for row in part.itertuples():
        # "ing" after a newline or a digit changes no class but its own; these three are by the piece alone.
        assert row.share == pytest.approx(np.mean(shares[row.document, row.selector, row.group]))
        assert row.base == pytest.approx(np.mean(bases[row.document, row.group]))


def test_shares_of_every_division_add_up(tmp_path: Path) -> None:
    frame = tokens.token_shares(simulate(tmp_path / "run", RULES, documents=2, save_selections=True))
    sums = frame.groupby(["document", "selector", "division"])[["share", "base"]].sum()
    whole = sums[sums.index.get_level_values("division") != "word part"]
    assert np.allclose(whole, 1.0)
    assert (sums <= 1 + 1e-12).all().all()


def test_profile_sees_what_was_planted_and_its_interval_is_a_t_interval(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=8, save_selections=True)
    shares = tokens.token_shares(run)
    profile = tokens.token_profile(shares).set_index(["selector", "division", "group"])
    assert profile.loc[("attention", "position", "0-10%"), "low"] > 1.3
    assert profile.loc[("attention", "position", "90-100%"), "high"] < 0.7
    assert profile.loc[("entropy", "position", "90-100%"), "low"] > 1.1
    row = profile.loc[("random", "class", "digits")]
    mine = shares[(shares["selector"] == "random") & (shares["group"] == "digits")]
    lift = mine["share"] / mine["base"]
    half = stats.t.ppf(0.975, 7) * lift.std(ddof=1) / math.sqrt(8)
    assert row["lift"] == pytest.approx(lift.mean())
    assert (row["low"], row["high"]) == pytest.approx((lift.mean() - half, lift.mean() + half))


def test_no_interval_below_six_documents(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=5, save_selections=True)
    profile = tokens.token_profile(tokens.token_shares(run))
    present = profile[profile["base"] > 0]
    assert present["lift"].notna().all()
    assert profile["low"].isna().all()


def test_authors_are_the_unit_and_runs_are_told_apart(tmp_path: Path) -> None:
    runs = [
        simulate(tmp_path / name, RULES, documents=12, authors=list("abcdef"), save_selections=True) for name in "xy"
    ]
    shares = of_several(tokens.token_shares, named(runs), cluster="author")
    profile = tokens.token_profile(shares, clustered=True)
    assert profile["run"].unique().tolist() == ["x", "y"]
    row = profile[(profile["run"] == "y") & (profile["selector"] == "random") & (profile["group"] == "digits")].iloc[0]
    mine = shares[(shares["run"] == "y") & (shares["selector"] == "random") & (shares["group"] == "digits")]
    lift = (mine["share"] / mine["base"]).groupby(mine["cluster"]).mean()
    assert row["n"] == 6
    assert (row["low"], row["high"]) == pytest.approx(stats.t.interval(0.95, 5, lift.mean(), stats.sem(lift)))


def test_one_layer_alone(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=1, save_selections=True)
    whole = tokens.token_shares(run).set_index(["selector", "division", "group"])["share"]
    each = [tokens.token_shares(run, layer=k).set_index(["selector", "division", "group"])["share"] for k in (0, 1)]
    # Every layer spends the same budget, so the whole is the mean of the layers.
    assert np.allclose(whole, (each[0] + each[1]) / 2)
    assert not np.allclose(each[0], each[1])

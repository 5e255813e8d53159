"""The sentences of a report follow from the numbers: each with its interval, and none says more than the data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from simulated import Decay, simulate

from forward_influence.analysis.measures.compare import compare
from forward_influence.analysis.measures.overlap import overlap, overlap_summary
from forward_influence.analysis.measures.tokens import token_profile, token_shares
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.selections import of_several
from forward_influence.analysis.report import findings
from forward_influence.analysis.report.findings import Evidence, crossing_sentence
from forward_influence.storage.run import Run

RULES = {
    "attention": Decay("power", 1.0, 0.9),
    "entropy": Decay("power", 0.12, 0.45),
    "random": Decay("power", 0.1, 0.6),
}
FLAT = {
    "attention": Decay("power", 1.0, 0.5),
    "entropy": Decay("power", 0.1, 0.5),
    "random": Decay("power", 0.1, 0.5),
}


def told(run: Run, **options: object) -> list[str]:
    """All sentences about a run."""
    found = compare(run, **options)  # type: ignore[arg-type]
    return [s for group in findings.findings(Evidence(found)) for s in group.sentences]


def the(sentences: list[str], start: str) -> str:
    """The one sentence that starts so."""
    (sentence,) = [s for s in sentences if s.startswith(start)]
    return sentence


def numbers(text: str) -> list[float]:
    return [float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*\.?\d*(?:e-?\d+)?", text)]


def test_the_planted_crossover_is_stated_with_its_interval(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=8, rule_spread=0.1)
    distance = np.arange(1024)
    truth = int(np.flatnonzero(RULES["entropy"].at(distance) > RULES["attention"].at(distance))[0])
    sentence = the(told(run), "entropy's influence exceeds attention's from")
    at, low, high = numbers(sentence.split(";")[0].replace("95%", ""))
    assert low <= truth <= high
    assert at == pytest.approx(truth, rel=0.4)
    row = compare(run, pairs=[("entropy", "attention")]).crossovers.iloc[0]
    assert (at, low, high) == (round(row["distance"]), round(row["low"]), round(row["high"]))


def test_what_was_not_found_is_stated_with_near_and_far_ratios(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", FLAT, documents=8, rule_spread=0.05)
    sentence = the(told(run), "entropy's influence does not come to exceed attention's within the range (0 to 1,023")
    assert "at any distance" not in sentence
    assert "not excluded" not in sentence
    logs = _logs(run)
    near, far = (np.exp((logs[z]["entropy"] - logs[z]["attention"]).mean()) for z in ("near", "far"))
    stated = re.findall(r"([\d.]+)× \[([\d.]+), ([\d.]+)\] (near|far)", sentence)
    assert [zone for *_, zone in stated] == ["near", "far"] * 2
    assert [float(ratio) for ratio, *_ in stated[:2]] == pytest.approx([near, far], rel=0.01)
    means = {z: rows.groupby("selector")["kl"].mean() for z, rows in compare(run).zones.groupby("zone")}
    of_means = [means[zone]["entropy"] / means[zone]["attention"] for zone in ("near", "far")]
    assert "(of arithmetic means: " in sentence
    assert [float(ratio) for ratio, *_ in stated[2:]] == pytest.approx(of_means, rel=0.01)


def _logs(run: Run) -> dict[str, object]:
    zones = compare(run).zones
    return {
        zone: np.log(rows.pivot(index="document", columns="selector", values="kl"))
        for zone, rows in zones.groupby("zone")
    }


def test_a_crossover_that_documents_do_not_exclude_is_not_denied(tmp_path: Path) -> None:
    close = {**FLAT, "entropy": Decay("power", 0.97, 0.5)}
    sentence = the(told(simulate(tmp_path / "run", close, documents=6, rule_spread=0.4, seed=1)), "entropy's influence")
    assert "not excluded" in sentence


def test_what_cannot_be_told_from_random_minds_the_grain(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", FLAT, documents=8, rule_spread=0.05)
    sentence = the(told(run), "Cannot be told from random: entropy near (")
    pattern = (
        r"near \([\d.]+× \[[\d., ]+\]\) and far \([\d.]+× \[[\d., ]+\]\), intervals as wide as 4 comparisons ask for\."
    )
    assert re.search(pattern, sentence)
    assert "entropy chooses whole tokens against random's entries, so that the multiple is too high" in sentence
    alike = {**FLAT, "random:per=token": Decay("power", 0.1, 0.5)}
    sentence = the(told(simulate(tmp_path / "alike", alike, documents=8, rule_spread=0.05)), "Cannot be told from")
    assert "grain" not in sentence


def test_one_rule_cannot_be_told_and_several_fall_below(tmp_path: Path) -> None:
    """Sentences of one baseline do not change those of the next (the verb of several rules once stuck)."""
    rules = {name: Decay("power", 0.02, 0.5) for name in ("attention", "h2o", "tova")}
    rules |= {"entropy": Decay("power", 0.1, 0.5), "random": Decay("power", 0.1, 0.5)}
    sentences = told(simulate(tmp_path / "run", rules, documents=8, rule_spread=0.05))
    below = the(sentences, "Less than random: ")
    assert all(f"{rule} near (" in below for rule in ("attention", "h2o", "tova"))
    assert "entropy" not in below
    assert the(sentences, "Cannot be told from random: entropy near (")


def test_the_largest_influence_names_what_cannot_be_told_from_it(tmp_path: Path) -> None:
    alike = {"attention": Decay("power", 1.0, 0.5), "h2o": Decay("power", 1.0, 0.5), "random": Decay("power", 0.1, 0.5)}
    run = simulate(tmp_path / "run", alike, documents=8, rule_spread=0.2)
    near = the(told(run), "Near the context")
    top, other = re.match(r"Near the context, (\w+) has .*; (\w+) \(", near).groups()  # type: ignore[union-attr]
    assert {top, other} == {"attention", "h2o"}
    logs = _logs(run)["near"]
    difference = logs[other] - logs[top]  # type: ignore[index]
    half = t.ppf(0.975, 7) * difference.std() / np.sqrt(8)
    assert difference.mean() < 0 < difference.mean() + half
    bounds = [float(x) for x in re.findall(r"[\d.]+(?=[,\]])", near.split(f"{other} (")[1])]
    assert bounds == pytest.approx(np.exp([difference.mean() - half, difference.mean() + half]), rel=0.01)


def test_rules_are_said_to_fade_apart_only_where_they_do(tmp_path: Path) -> None:
    apart = told(simulate(tmp_path / "apart", RULES, documents=8))
    assert the(apart, "attention's influence fades faster than entropy's: half-distances, counted from distance 64")
    alike = told(simulate(tmp_path / "alike", FLAT, documents=8, noise=1.0))
    assert the(alike, "Which rule's influence fades fastest cannot be told: half-distances")
    assert not any("fades faster" in s or "fades slowest" in s for s in alike)


def test_controls_are_no_subjects(tmp_path: Path) -> None:
    strong = {**RULES, "recent": Decay("power", 5.0, 0.3), "position-matched": Decay("power", 4.0, 0.2)}
    sentences = told(simulate(tmp_path / "run", strong, documents=8))
    matched = the(sentences, "As a multiple of its position-matched control: attention ")
    assert re.search(
        r"attention [\d.]+× \[[\d., ]+\] near and [\d.]+× \[[\d., ]+\] far \(position-matched holds 30%", matched
    )
    for control in ("recent", "position-matched"):
        assert not any(control in s for s in sentences if s != matched)
    assert the(sentences, "Near the context, attention has the largest influence")


def test_rules_that_are_all_alike_are_rarely_told_apart(tmp_path: Path) -> None:
    """The largest of six is larger than some by chance: with intervals of 95% each, 4 of these 24 sentences said so."""
    rules = {
        name: Decay("power", 0.1, 0.5) for name in ("attention", "h2o", "tova", "infokv", "snapkv", "keydiff", "random")
    }
    said = 0
    for seed in range(12):
        options = {"documents": 6, "draws": 1, "continuation": 64, "rule_spread": 0.4, "seed": seed}
        sentences = told(simulate(tmp_path / str(seed), rules, **options))
        largest = [s for s in sentences if " has the largest influence" in s]
        assert len(largest) == 2
        said += sum(not all(name in s for name in rules) for s in largest)
    assert said <= 2


def test_the_other_rules_share_a_sentence(tmp_path: Path) -> None:
    many = {
        **RULES,
        "h2o": Decay("power", 0.1, 0.9),
        "infokv": Decay("power", 2.0, 0.8),
        "tova": Decay("power", 0.3, 0.5),
    }
    run = simulate(tmp_path / "run", many, documents=8, rule_spread=0.1)
    others = the(told(run), "Of the other rules, ")
    assert re.search(r"h2o \([\d.]+× \[[\d., ]+\] far\) does not come to exceed attention's", others)
    assert "infokv exceeds attention's throughout" in others
    assert re.search(r"tova exceeds attention's from \d+ tokens on \(95% interval: \d+ to \d+\)", others)
    assert len(told(run)) <= 8


def test_of_the_other_rules_too_nothing_is_denied_that_is_not_excluded(tmp_path: Path) -> None:
    alike = {"attention": Decay(), "entropy": Decay(level=0.1), "infokv": Decay(), "random": Decay(level=0.1)}
    alike["h2o"] = Decay(level=0.05)
    run = simulate(tmp_path / "run", alike, documents=8)
    others = the(told(run), "Of the other rules, ")
    infokv, h2o = sorted(others.split("; "), key=lambda clause: "h2o" in clause)
    assert "is not excluded" in infokv
    assert "h2o" in h2o and "excluded" not in h2o


def test_the_largest_influence_minds_the_grain(tmp_path: Path) -> None:
    rules = {"attention": Decay(level=0.2), "entropy": Decay(level=2.0), "random": Decay(level=0.1)}
    sentences = told(simulate(tmp_path / "run", rules, documents=8))
    near, far = (the(sentences, f"{where} the context, entropy has") for where in ("Near", "Far from"))
    assert "entropy chooses whole tokens against random's entries, so that the multiple is too high" in near
    assert "grain" not in far, "once is enough"


def test_what_is_under_the_noise_floor_is_claimed_of_no_rule(tmp_path: Path) -> None:
    rules = {name: Decay("exponential", level, 60) for name, level in (("attention", 1.0), ("entropy", 0.5))}
    run = simulate(tmp_path / "run", {**rules, "random": Decay("exponential", 0.3, 60)}, documents=8, floor=1e-3)
    sentences = told(run)
    assert not any(s.startswith("Far from the context") for s in sentences)
    assert not any("far (" in s for s in sentences)
    floor = the(sentences, "Under 4x the noise floor, and not to be relied on: ")
    assert all(f"{rule} (far)" in floor for rule in ("attention", "entropy", "random"))
    assert "far, under the noise floor" in the(sentences, "entropy's influence")


NAN, INF = float("nan"), float("inf")
SURE = {"ratio": 0.4, "ratio_low": 0.3, "ratio_high": 0.5, "flagged": False}


@pytest.mark.parametrize(
    ("distance", "low", "high", "far", "expected"),
    [
        (
            92.4,
            70,
            119,
            SURE,
            "entropy's influence exceeds attention's from 92 tokens on (95% interval: 70 to 119); it",
        ),
        (
            0.0,
            0,
            INF,
            SURE,
            "the range (0 to 1,023 tokens) (95% interval: anywhere or nowhere), though that it never does is not",
        ),
        (40.0, 9, INF, SURE, "on (95% interval: after 9), though that it never does is not excluded"),
        (0.0, 0, 12, SURE, "throughout the range (0 to 1,023 tokens) (95% interval: 0 to 12); it is"),
        (
            INF,
            900,
            INF,
            SURE,
            "is not seen to exceed attention's within the range (0 to 1,023 tokens) (95% interval: after 900), though "
            "that it does is not excluded; it is",
        ),
        (INF, INF, INF, SURE, "(0 to 1,023 tokens); it is 0.400× [0.300, 0.500] far."),
        (
            INF,
            INF,
            INF,
            {**SURE, "flagged": True},
            "does not come to exceed attention's within the range (0 to 1,023 tokens); it is 0.400× [0.300, 0.500] "
            "far, under the noise floor.",
        ),
        (NAN, NAN, NAN, SURE, "could not be set against attention's (no document has both)."),
    ],
)
def test_crossings_in_words(distance: float, low: float, high: float, far: dict, expected: str) -> None:
    row = {"rule": "entropy", "distance": distance, "low": low, "high": high, "first": 0, "last": 1023}
    assert expected in crossing_sentence({**row, "reason": "no document has both"}, {"far": far})


def test_a_rule_that_exceeds_only_near_the_context_is_said_to(tmp_path: Path) -> None:
    """It was said not to come to exceed attention's within the range, which it does before the two cross."""
    rules = {"attention": Decay("power", 0.12, 0.4), "entropy": Decay("power", 1.0, 0.9), "random": Decay(level=0.01)}
    rules["h2o"] = rules["entropy"]
    run = simulate(tmp_path / "run", rules, documents=8, rule_spread=0.1)
    sentences = told(run)
    sentence = the(sentences, "entropy's influence exceeds attention's up to ")
    at, low, high = numbers(sentence.split(" and not beyond")[0].replace("95%", ""))
    distance = np.arange(1024)
    truth = int(np.flatnonzero(rules["entropy"].at(distance) < rules["attention"].at(distance))[0])
    assert low <= truth <= high and low <= at <= high
    assert re.search(
        r"h2o \([\d.]+× \[[\d., ]+\] far\) exceeds attention's up to \d+ tokens", the(sentences, "Of the other")
    )


def test_below_six_documents_nothing_is_claimed(tmp_path: Path) -> None:
    sentences = told(simulate(tmp_path / "run", RULES, documents=5))
    assert sentences[0].startswith("With 5 documents nothing can be inferred")
    assert not any("[" in s or "cannot be told" in s or "95%" in s or "excluded" in s for s in sentences)


def test_authors_are_the_unit_where_asked_for(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=12, authors=list("abc"))
    assert told(run, cluster="author")[0].startswith("With 3 documents nothing can be inferred")
    run = simulate(tmp_path / "six", FLAT, documents=12, authors=list("abcdef"), rule_spread=0.4)
    by_document, by_author = (the(told(run, cluster=c), "Near the context") for c in (None, "author"))
    assert numbers(by_document)[0] == numbers(by_author)[0]  # the same mean
    assert numbers(by_document)[1:] != numbers(by_author)[1:]  # of other intervals


def test_conditions_have_headings_and_only_the_first_is_told_in_full(tmp_path: Path) -> None:
    run = simulate(
        tmp_path / "run", RULES, documents=8, budgets=("0.1", "0.2", "0.3", "0.4", "0.5"), effects=("total", "direct")
    )
    groups = findings.findings(Evidence(compare(run)))
    assert [g.heading for g in groups] == [*(f"Budget 0.{i}" for i in range(1, 5)), "All conditions"]
    full, *short, last = groups
    assert any("fades faster" in s for s in full.sentences)
    assert not any("fades faster" in s for g in short for s in g.sentences)
    assert all(len(g.sentences) <= 3 for g in short)
    assert any("of 5 conditions, the last 1" in s.lower() for s in last.sentences)
    shares = the(last.sentences, "The direct effect's share of the total at budget 0.1")
    assert [float(x) for x in re.findall(r"(0\.\d+) \[", shares)] == pytest.approx([0.6] * 4, abs=0.1)


def test_layers_ablated_one_by_one_are_left_to_the_tables(tmp_path: Path) -> None:
    found = compare(simulate(tmp_path / "run", RULES, documents=6))
    table = found.table.assign(layers="3")
    groups = findings.findings(Evidence(type(found)(**{**vars(found), "table": table})))
    assert [s for g in groups for s in g.sentences] == [
        "Layers were ablated one by one: what each layer does is in the layers picture and the tables."
    ]


def test_what_rules_select_names_the_run_where_there_are_several(tmp_path: Path) -> None:
    runs = named([simulate(tmp_path / n, RULES, documents=6, save_selections=True, draws=1) for n in ("one", "two")])
    pairs, profile = overlap_summary(of_several(overlap, runs)), token_profile(of_several(token_shares, runs))
    found = compare(runs["one"])
    last = findings.findings(Evidence(found, pairs, profile))[-1].sentences
    starts = [s.split(" ")[0] for s in last]
    assert starts[-4:] == ["one:", "two:", "one:", "two:"]
    mine = Evidence(found, *(frame[frame["run"] == "one"] for frame in (pairs, profile)))
    one = findings.findings(mine)[-1].sentences
    shared = the(one, "Of their budget, attention and entropy share ")
    row = pairs[(pairs["run"] == "one") & (pairs["rule_a"] == "attention") & (pairs["rule_b"] == "entropy")].iloc[0]
    assert numbers(shared)[0] == pytest.approx(100 * row["shared"], rel=0.05)
    words = the(one, "How often a kind of word is selected")
    assert words.count("function words") == 2  # of two rules that are no controls


def test_where_only_selections_are_kept_it_is_divergence_that_is_spoken_of(tmp_path: Path) -> None:
    rising = {"attention": Decay("power", 0.1, -0.2), "infokv": Decay("power", 0.3, -0.2)}
    run = simulate(tmp_path / "run", rising, documents=8, mode="keep")
    sentences = told(run, baseline="attention")
    assert sentences[0].startswith("Only what a rule selects is kept here") and "less of it is better" in sentences[0]
    assert the(sentences, "In divergence, infokv exceeds attention's throughout")
    assert the(sentences, "Far from the context, infokv has the largest divergence: ")
    assert the(sentences, "No rule's divergence is seen to fall with distance.")
    assert not any("influence" in sentence for sentence in sentences)

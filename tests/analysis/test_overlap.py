"""Overlap of selections: exact numbers on toys, and a plain second implementation on simulated runs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import rankdata, spearmanr
from simulated import Decay, simulate

from forward_influence.analysis.measures import overlap
from forward_influence.analysis.reading import parts
from forward_influence.analysis.reading.curves import named
from forward_influence.analysis.reading.selections import has_selections, model_layers, of_several, read_selections
from forward_influence.analysis.statistics.ranks import ranks
from forward_influence.errors import ForwardInfluenceError, UsageError

RULES = {name: Decay() for name in ("attention", "entropy", "random")}


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """|A and B| / |A or B| of two boolean arrays of one shape; NaN where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else float("nan")


def shared_budget(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Share of the budget that two selections have in common, 2 |A and B| / (|A| + |B|); NaN where both are empty.

    With equal counts, which equal budgets give, this is the fraction of either selection that the other one holds.
    """
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else float("nan")


def chance_shared(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The `shared_budget` that independent selections with the same counts per head would have in expectation.

    Args:
        a, b: bool (H, candidates); counts are taken per head, as rules spend their budget per head.
    """
    in_a, in_b = a.sum(-1, dtype=np.float64), b.sum(-1, dtype=np.float64)
    total = (in_a + in_b).sum()
    return float(2 * (in_a * in_b / a.shape[-1]).sum() / total) if total else float("nan")


def test_jaccard_and_shared_of_a_toy() -> None:
    a = np.array([[1, 1, 0, 0, 1, 0]], dtype=bool)
    b = np.array([[0, 1, 1, 0, 1, 0]], dtype=bool)
    assert jaccard(a, b) == pytest.approx(2 / 4)
    assert shared_budget(a, b) == pytest.approx(2 / 3)
    assert chance_shared(a, b) == pytest.approx(3 / 6)
    assert jaccard(a, a) == shared_budget(a, a) == 1.0
    assert jaccard(a, ~a) == shared_budget(a, ~a) == 0.0
    empty = np.zeros_like(a)
    assert np.isnan([jaccard(empty, empty), shared_budget(empty, empty)]).all()


def test_chance_is_what_random_selections_share() -> None:
    rng = np.random.default_rng(0)
    heads, n = 3, 400

    def draw(count: int) -> np.ndarray:
        return rng.random((heads, n)).argsort(-1) < count

    shared = [shared_budget(draw(80), draw(80)) for _ in range(300)]
    assert np.mean(shared) == pytest.approx(chance_shared(draw(80), draw(80)), abs=0.005)
    assert chance_shared(draw(80), draw(80)) == pytest.approx(0.2)


def test_ranks_give_spearmans_correlation_ties_included() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, (2, 5, 40)).astype(float), rng.random((2, 5, 40))
    ours = (overlap.centred_ranks(a) * overlap.centred_ranks(b)).sum(-1)
    for i in range(2):
        for j in range(5):
            assert ours[i, j] == pytest.approx(spearmanr(a[i, j], b[i, j]).statistic, abs=1e-12)
    assert np.isnan(overlap.centred_ranks(np.ones((1, 4)))).all()


def test_ranks_equal_scipys() -> None:
    rng = np.random.default_rng(2)
    for scores in (
        rng.random((3, 2, 50)).astype(np.float32),
        rng.integers(0, 5, (4, 50)).astype(float),
        np.array([[1.0, np.nan, 0.0], [np.inf, -np.inf, 0.0], [0.0, -0.0, 1.0]]),
        rng.random((2, 3, 60))[..., 5:40],
        np.ones((2, 1)),
    ):
        np.testing.assert_array_equal(ranks(scores), rankdata(scores, axis=-1))


def test_overlap_of_a_run_equals_plain_loops(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=3, segments=2, draws=2, save_selections=True)
    frame = overlap.overlap(run)
    expected: dict[tuple[str, str, str, int], list[list[float]]] = {}
    for document in read_selections(run):
        for a, b in combinations(document.choices, 2):
            if a.selector == b.selector or a.segment != b.segment:
                continue
            context = document.contexts[a.segment]
            inside = range(context.first, context.stop)
            for layer in range(2):
                correlations = []
                for head in range(2):
                    s = np.broadcast_to(a.scores, a.selection.shape)[layer, head, list(inside)]
                    t = np.broadcast_to(b.scores, b.selection.shape)[layer, head, list(inside)]
                    correlations.append(spearmanr(s, t).statistic)
                key = (document.document["name"], a.selector, b.selector, model_layers(run)[layer])
                of_both = [choice.selection[layer][:, list(inside)] for choice in (a, b)]
                plain = [measure(*of_both) for measure in (jaccard, shared_budget, chance_shared)]
                expected.setdefault(key, []).append([*plain, float(np.mean(correlations))])
    assert len(frame) == len(expected) == 3 * 3 * 2
    for row in frame.itertuples():
        want = np.mean(expected[row.document, row.rule_a, row.rule_b, row.layer], axis=0)
        found = [row.jaccard, row.shared, row.chance, row.rank_correlation]
        assert found == pytest.approx(want.tolist(), abs=1e-10)


def test_matrix_is_symmetric_with_the_means_of_the_frame(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2, save_selections=True)
    frame = overlap.overlap(run)
    matrix = overlap.overlap_matrix(frame, "jaccard")
    assert list(matrix) == ["attention", "entropy", "random"]
    assert (matrix.to_numpy() == matrix.to_numpy().T).all()
    assert np.diag(matrix).tolist() == [1, 1, 1]
    pair = frame[(frame["rule_a"] == "attention") & (frame["rule_b"] == "random")]
    assert matrix.loc["random", "attention"] == pytest.approx(pair["jaccard"].mean())


def test_summary_has_intervals_from_six_documents_on(tmp_path: Path) -> None:
    many = overlap.overlap_summary(overlap.overlap(simulate(tmp_path / "a", RULES, documents=6, save_selections=True)))
    few = overlap.overlap_summary(overlap.overlap(simulate(tmp_path / "b", RULES, documents=5, save_selections=True)))
    assert (many["shared_low"] < many["shared"]).all()
    assert (many["shared"] < many["shared_high"]).all()
    assert few[["shared_low", "shared_high", "jaccard_low"]].isna().all().all()
    assert list(many["n"]) == [6] * 3


def test_summary_by_layer_is_the_mean_over_documents_of_each_layer(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=6, save_selections=True, layers=3)
    frame = overlap.overlap(run)
    made = overlap.overlap_summary(frame, by_layer=True)
    assert len(made) == 3 * 3
    for row in made.itertuples():
        mine = frame[(frame["rule_a"] == row.rule_a) & (frame["rule_b"] == row.rule_b) & (frame["layer"] == row.layer)]
        assert row.shared == pytest.approx(mine["shared"].mean())
        assert row.shared_low < row.shared < row.shared_high
    whole = overlap.overlap_summary(frame).set_index(["rule_a", "rule_b"])["jaccard"]
    assert made.groupby(["rule_a", "rule_b"])["jaccard"].mean().to_dict() == pytest.approx(whole.to_dict())


def test_authors_are_the_unit_where_asked_for(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=12, authors=list("abcdef"), save_selections=True)
    frame = overlap.overlap(run, cluster="author")
    made = overlap.overlap_summary(frame, clustered=True)
    plain = overlap.overlap_summary(frame)
    assert set(made["n"]) == {6}
    assert made["shared"].tolist() == pytest.approx(plain["shared"].tolist())
    means = frame.groupby(["rule_a", "rule_b", "cluster"])["shared"].mean()["attention", "entropy"]
    row = made[(made["rule_a"] == "attention") & (made["rule_b"] == "entropy")].iloc[0]
    assert (row["shared_low"], row["shared_high"]) == pytest.approx(
        stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    )


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    runs = [simulate(tmp_path / name, RULES, documents=2, save_selections=True, seed=i) for i, name in enumerate("ab")]
    frame = of_several(overlap.overlap, named(runs))
    assert frame["run"].unique().tolist() == ["a", "b"]
    assert frame[frame["run"] == "b"]["shared"].tolist() == overlap.overlap(runs[1])["shared"].tolist()


def test_pairs_not_measured_together_are_unknown_in_the_matrix(tmp_path: Path) -> None:
    frame = overlap.overlap(simulate(tmp_path / "run", RULES, documents=2, save_selections=True))
    matrix = overlap.overlap_matrix(frame, rules=["attention", "entropy", "infokv"])
    assert matrix.loc["infokv", "infokv"] == 1
    assert matrix.loc["infokv", ["attention", "entropy"]].isna().all()


def test_a_document_whose_part_does_not_read_back_is_left_out(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=3, save_selections=True)
    path = run.part_path("speech-001")
    path.write_bytes(path.read_bytes()[:-200])
    names = [d.document["name"] for d in read_selections(run)]
    assert names == ["speech 000", "speech 002"] == [d["name"] for d in parts.measured(run)]
    assert sorted(overlap.overlap(run)["document"].unique()) == names


def test_a_part_is_read_again_when_it_changes(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2, measured=1)
    assert len(parts.measured(run)) == 1
    simulate(tmp_path / "run", RULES, documents=2)
    assert len(parts.measured(run)) == 2
    run.part_path("speech-000").write_bytes(b"broken")
    assert [d["name"] for d in parts.measured(run)] == ["speech 001"]


def test_both_effects_of_one_selection_count_once(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=1, draws=1, effects=("total", "direct"), save_selections=True)
    (document,) = read_selections(run)
    assert sorted(c.selector for c in document.choices) == ["attention", "entropy", "random"]


def test_a_run_without_selections_says_how_to_get_them(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=1)
    assert not has_selections(run)
    with pytest.raises(UsageError, match="`save_selections`"):
        overlap.overlap(run)


def test_a_broken_selections_file_is_named(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=1, save_selections=True)
    path = run.selections_path("speech-000")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ForwardInfluenceError, match=r"speech-000\.safetensors does not read back"):
        list(read_selections(run))


def test_a_flipped_bit_in_selections_is_found(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", RULES, documents=2, save_selections=True)
    path = run.selections_path("speech-001")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # a tensor's last value: the file is as well-formed as before
    path.write_bytes(content)
    found = read_selections(run)
    assert next(found).document["part"] == "speech-000"
    with pytest.raises(ForwardInfluenceError, match=r"speech-001.*differs from its digest.*anew with: forward-inf"):
        next(found)

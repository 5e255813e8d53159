"""Several answers to an item: drawn as if alone, averaged by item, pass@k; prompts that stay whole; older folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from float64 import Float64
from test_evaluation import loaded, plan, results

from forward_influence.analysis.formatting.held_words import protection
from forward_influence.analysis.measures.accuracy import accuracy_table, pass_at
from forward_influence.data.tasks import parse_task
from forward_influence.errors import UsageError
from forward_influence.evaluation.run import evaluate
from forward_influence.storage.evaluation import SCHEMA, open_evaluation
from forward_influence.storage.tables import encode_table, values_sha256

FACTS = (parse_task("facts:people=1"),)


def drawn(folder: Path, **changes) -> pd.DataFrame:
    settings = {"tasks": FACTS, "compressors": ("attention",), "budgets": ("0.3",), "lengths": (300,), "items": 2}
    settings |= {"protocol": "seen", "runs": 3, "temperature": 1.5, **changes}
    with Float64():
        return evaluate(loaded(), plan(**settings), folder).frame()


@pytest.mark.parametrize("every", [None, 4])
def test_no_draw_depends_on_the_batch_and_compressors_draw_alike(every: int | None, tmp_path: Path) -> None:
    columns = ["item", "run", "compressor", "response", "new_tokens", "limited", "held"]
    one = drawn(tmp_path / "one", every=every, batch=1)[columns]
    pd.testing.assert_frame_equal(one, drawn(tmp_path / "all", every=every)[columns])
    assert one.groupby(["item", "compressor"])["run"].apply(sorted).tolist() == [[0, 1, 2]] * 6
    full = one[one["compressor"] == "full"]
    assert full["response"].nunique() > 3
    # as many as everything: the same draws as the full cache
    everything = drawn(tmp_path / "everything", every=every, budgets=("1.0",), compressors=("attention",))
    same = everything.groupby(["item", "run"])["response"].nunique()
    assert (same == 1).all()


def test_an_answer_that_ends_is_not_limited(tmp_path: Path) -> None:
    frame = drawn(tmp_path / "e")
    limit = FACTS[0].answer_tokens
    assert (frame.loc[frame["new_tokens"] < limit, "limited"] == False).all()  # noqa: E712
    assert frame["limited"].any()


def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_answer() -> None:
    for runs, correct in [(5, 2), (4, 0), (4, 4), (6, 5)]:
        answers = [1] * correct + [0] * (runs - correct)
        for k in range(1, runs + 1):
            shares = [max(choice) for choice in itertools.combinations(answers, k)]
            assert pass_at(np.array([correct]), runs, k)[0] == pytest.approx(np.mean(shares))


def of_runs(scores: dict[tuple[str, str], list[list[float]]]) -> pd.DataFrame:
    """Scores (runs, items)."""
    parts = [
        results({key: values[run] for key, values in scores.items()}).assign(run=run)
        for run in range(len(next(iter(scores.values()))))
    ]
    return pd.concat(parts).sample(frac=1, random_state=1)


def test_items_count_with_their_means_over_runs() -> None:
    full, other = [[1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1]], [[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    frame = of_runs({("full", "1.0"): full, ("a", "0.2"): other})
    row = accuracy_table(frame).set_index("compressor").loc["a"]
    means = np.array(other).mean(0)
    differences = means - np.array(full).mean(0)
    assert (row["items"], row["runs"], row["k"]) == (6, 2, 2)
    assert row["accuracy"] == pytest.approx(means.mean())
    assert row["difference"] == pytest.approx(differences.mean())
    assert row["pass_at"] == pytest.approx(np.array(other).max(0).mean())
    assert accuracy_table(frame, k=1).set_index("compressor").loc["a", "pass_at"] == pytest.approx(means.mean())
    # a bootstrap over items, not over answers: its spread is that of item means, widened for six units
    rng = np.random.default_rng(5)
    boots = differences[rng.integers(0, 6, (20_000, 6))].mean(1)
    low, high = np.quantile(boots, [0.025, 0.975])
    assert row["difference_low"] < low + 0.02 and row["difference_high"] > high - 0.02
    assert row["difference_low"] > low - 0.25
    with pytest.raises(UsageError, match=r"`pass_at` 3: there are 2 runs"):
        accuracy_table(frame, k=3)


def test_lengths_and_limits_stand_beside_accuracy() -> None:
    frame = results({("full", "1.0"): [1.0] * 4})
    row = accuracy_table(frame).iloc[0]
    assert (row["tokens"], row["limited"]) == (8, 0.25)


def test_runs_need_a_temperature() -> None:
    with pytest.raises(UsageError, match="`runs` 3 at temperature 0 would be the same"):
        plan(runs=3)
    for wrong in (-0.5, float("nan")):
        with pytest.raises(UsageError, match="`temperature`"):
            plan(temperature=wrong)


def test_every_compressor_keeps_the_prompt_or_none_does(tmp_path: Path) -> None:
    names = ("attention", "rpc:window=4")
    for asked, kept in ((None, {True}), ("all", {True}), ("none", {False}), ("own", {False, True})):
        made = plan(compressors=names, budgets=("0.25",), every=4, keep_prompt=asked)
        assert {c.compressor.keeps_prompt for c in made.contenders if c.name in names} == kept
    frame = drawn(tmp_path / "e", every=4, runs=1, temperature=0.0, compressors=names, budgets=("0.25",))
    assert (frame["held"] >= frame["context_tokens"]).all()
    assert open_evaluation(tmp_path / "e").configuration["keep_prompt"] == "all"
    assert protection(open_evaluation(tmp_path / "e").configuration).startswith("prompt: every compressor keeps")
    assert protection({"every": None}) == ""
    assert "each compressor" in protection({"every": 4})
    with pytest.raises(UsageError, match="give `every` 256"):
        plan(keep_prompt="all")


def test_a_folder_from_before_runs_is_read_and_goes_on(tmp_path: Path) -> None:
    """Schema 3 had neither runs nor limits."""
    made = plan(tasks=FACTS, items=2, protocol="seen", lengths=(300,))
    evaluation = evaluate(loaded(), made, tmp_path / "e")
    wanted = evaluation.frame()
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    digest = manifest["configuration_hash"]
    old = pa.schema([column for column in SCHEMA if column.name not in ("run", "limited")])
    for path in [*(tmp_path / "e" / "parts").glob("*.parquet"), tmp_path / "e" / "results.parquet"]:
        table = pa.Table.from_pandas(pd.read_parquet(path), schema=old, preserve_index=False)
        path.write_bytes(encode_table(table, {"configuration": digest, "digest": values_sha256(table)}))
    (tmp_path / "e" / "manifest.json").write_text(json.dumps({**manifest, "schema": 3}))
    frame = open_evaluation(tmp_path / "e").frame()
    assert frame["limited"].isna().all()
    kept = [name for name in wanted if name != "limited"]
    pd.testing.assert_frame_equal(frame[kept], wanted[kept])
    assert accuracy_table(frame)["limited"].isna().all()

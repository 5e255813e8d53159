"""Several models beside each other: ratios to their own controls, within documents, and a mean over three or more."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from simulated import Decay, simulate

from forward_influence.analysis.measures.across_models import across_models, over_models
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.errors import UsageError


def model(folder, name: str, times: float, *, configuration=None, **fields):
    rules = {"attention": Decay("flat", times), "random": Decay("flat", 1.0)}
    about = {"model": {"spec": name, "fingerprint": name}, "configuration": configuration or {}}
    return simulate(folder / name, rules, manifest=about, **{"documents": 10, "noise": 0.05, **fields})


def test_ratios_are_each_models_own_and_pairs_are_within_documents(tmp_path):
    one, two = model(tmp_path, "one", 2.0, seed=1), model(tmp_path, "two", 6.0, seed=2)
    found = across_models([one, two])
    assert found.documents == 10 and found.means["ratio"].isna().all()
    assert found.means["reason"].iloc[0] == "a mean over models needs 3 of them, there are 2"
    logs = {}
    for run, name in ((one, "one"), (two, "two")):
        frame = load_zones(run)
        wide = frame[frame["zone"] == "far"].pivot(index="document", columns="selector", values="kl")
        logs[name] = np.log(wide["attention"] / wide["random"])
        row = found.ratios[(found.ratios["model"] == name) & (found.ratios["zone"] == "far")].iloc[0]
        assert row["ratio"] == pytest.approx(math.exp(logs[name].mean()))
    pair = found.pairs[found.pairs["zone"] == "far"].iloc[0]
    assert (pair["model"], pair["over"], pair["finding"]) == ("two", "one", "more")
    assert pair["ratio"] == pytest.approx(math.exp((logs["two"] - logs["one"]).mean()))


def test_the_mean_over_models_has_the_spread_of_models(tmp_path):
    runs = [model(tmp_path, f"m{i}", times, seed=i) for i, times in enumerate((1.5, 3.0, 6.0))]
    row = across_models(runs).means.query("zone == 'far'").iloc[0]
    assert row["reason"] == "" and row["models"] == 3
    assert row["ratio"] == pytest.approx(3.0, rel=0.1)
    assert row["sd_model"] == pytest.approx(math.log(2), abs=0.12)
    assert row["ratio_low"] < 1 < row["ratio_high"]  # three models that differ this much leave it open


def test_the_mean_is_the_balanced_random_effects_estimate():
    """Of a balanced crossed design by hand: variances from mean squares, the interval from means."""
    rng = np.random.default_rng(5)
    y = (
        0.4
        + 0.5 * rng.standard_normal((5, 1))
        + 0.2 * rng.standard_normal((1, 12))
        + 0.1 * rng.standard_normal((5, 12))
    )
    index = np.indices(y.shape).reshape(2, -1).astype(str)
    found = over_models(pd.DataFrame({"y": y.ravel(), "model": index[0], "document": index[1]}))
    models, documents = y.mean(axis=1), y.mean(axis=0)
    rest = ((y - models[:, None] - documents[None, :] + y.mean()) ** 2).sum() / (4 * 11)
    between = models.var(ddof=1) - rest / 12
    error = math.sqrt(models.var(ddof=1) / 5 + documents.var(ddof=1) / 12 - rest / 60)
    assert found["ratio"] == pytest.approx(math.exp(y.mean()), rel=1e-6)
    assert found["sd_model"] == pytest.approx(math.sqrt(between), rel=0.01)
    assert math.log(found["ratio_high"] / found["ratio"]) == pytest.approx(2.7764451 * error, rel=0.01)  # t, 4 df


def test_models_that_do_not_differ_are_singular():
    y = np.tile(np.linspace(-0.3, 0.3, 12), (4, 1)) + 0.1 * np.random.default_rng(0).permuted(
        np.tile(np.linspace(-1, 1, 12), (4, 1)), axis=1
    )
    index = np.indices(y.shape).reshape(2, -1).astype(str)
    found = over_models(pd.DataFrame({"y": y.ravel(), "model": index[0], "document": index[1]}))
    assert set(found) == {"reason"} and found["reason"].startswith("singular: ")


def test_what_cannot_be_set_together_is_refused_in_one_line(tmp_path):
    one = model(tmp_path, "one", 2.0)
    longer = model(tmp_path, "longer", 2.0, context=512)
    few = model(tmp_path, "few", 2.0, documents=5)
    bare = simulate(
        tmp_path / "bare", {"attention": Decay()}, documents=10, manifest={"model": {"fingerprint": "bare"}}
    )
    other = model(tmp_path, "other", 2.0)
    other.manifest["documents"][3]["fingerprint"] = "f" * 64
    for runs, message in (
        ([one], "one run is of one model"),
        ([one, one], "are runs of one model"),
        ([one, longer], "context is 256 in one and 512 in the other"),
        ([one, few], "5 documents in common, and intervals need 6"),
        ([one, bare], "random was not measured of"),
        ([one, other], "differ in the text of document 'speech 003'"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            across_models(runs)
        assert "\n" not in str(error.value)

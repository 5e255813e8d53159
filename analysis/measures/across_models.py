"""Several models beside each other: every rule as a multiple of its own model's control, on the same documents.

KLs of different models are not on one scale: their vocabularies, their tokens and how sure they are differ. The ratio
of a rule to the random control of its own run is on one, and it is what stands side by side here. Two models are set
against each other by the ratio of these ratios within documents. Over three models or more there is a mean, of the
mixed model log ratio ~ 1 + (1 | model) + (1 | document), with Student's t of models - 1 degrees of freedom: models are
what it generalises over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.measures.equivalence import equivalences
from forward_influence.analysis.reading.comparable import MUST_AGREE
from forward_influence.analysis.reading.curves import load_zones
from forward_influence.analysis.reading.matrix import Matrix
from forward_influence.analysis.reading.pairing import CONDITIONS, RANDOM, beside_baseline, grains, variants
from forward_influence.analysis.statistics.equivalence import equivalence
from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS, STUDENT, Method
from forward_influence.analysis.statistics.mixed import Singular, fit_mixed
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run
from forward_influence.utils.distances import ZONES
from forward_influence.utils.margins import MARGIN

#: From so many models on there is a mean over them: of two, their spread is hardly known.
FEWEST_MODELS = 3
#: What may differ between runs of different models: each rule is set beside a control of its own run.
_MAY_DIFFER = ("dtype", "positions_per_bin", "bin_width", "layers", "heads")
_SAME = [name for name in CONDITIONS if name not in ("run", "model")]


@dataclass(frozen=True)
class AcrossModels:
    """What `across_models` found.

    Attributes:
        ratios: a row per model, rule and zone; the columns of `equivalences`, `model` first.
        pairs: a row per rule, zone and model beside the first one: `model`, `over`, and how many times the ratio of
            `over` the model's ratio is, within documents (`ratio`, `ratio_low`, `ratio_high`, `finding`, `n`).
        means: a row per rule and zone, over all models: `ratio` with its interval, `sd_model` (of logs), `models`, `n`
            (documents), `reason` why there is none.
        documents: how many all models were measured on.
    """

    ratios: pd.DataFrame
    pairs: pd.DataFrame
    means: pd.DataFrame
    documents: int


def across_models(
    runs: Sequence[Run], baseline: str = RANDOM, margin: float = MARGIN, *, method: Method = STUDENT
) -> AcrossModels:
    """Set runs of different models beside each other, on the documents that all of them have.

    Raises:
        UsageError: fewer than two models, two runs of one, settings or texts that differ, no rule or fewer than 6
            documents in common.
        ForwardInfluenceError: a run holds no measured document.
    """
    _check(runs)
    frames = {_name(run, runs): load_zones(run) for run in runs}
    shared = _shared([set(frame["document"]) for frame in frames.values()])
    if len(shared) < MINIMUM_DOCUMENTS:
        raise UsageError(
            f"the models were measured on {len(shared)} documents in common, and intervals need {MINIMUM_DOCUMENTS}; "
            "measure each of them on the same documents"
        )
    for name, frame in frames.items():
        frames[name] = frame = frame[frame["document"].isin(shared)].assign(model=name, run=name)
        if not variants(list(grains(frame)), baseline):
            raise UsageError(f"{baseline} was not measured of {name}; each model needs the control of its own")
    tables = [equivalences(frame, baseline, margin, method=method) for frame in frames.values()]
    ratios = pd.concat(tables, ignore_index=True)
    logs = {name: _log_ratios(frame, baseline) for name, frame in frames.items()}
    keys = [key for key in next(iter(logs.values())) if all(key in found for found in logs.values())]
    if not keys:
        raise UsageError("the models have no rule in common under equal budgets; measure the same rules of each")
    return AcrossModels(
        ratios=ratios.rename(columns={"run": "model"}),
        pairs=_pairs(logs, keys, margin, method),
        means=_means(logs, keys, method),
        documents=len(shared),
    )


def _name(run: Run, runs: Sequence[Run]) -> str:
    """The model of a run; with the run's name where two models are called alike."""
    spec = _spec(run)
    return spec if [_spec(other) for other in runs].count(spec) == 1 else f"{spec} ({run.name})"


def _spec(run: Run) -> str:
    return str(run.manifest.get("model", {}).get("spec") or run.name)


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise UsageError("one run is of one model; give a run of each, two or more")
    prints: dict[Any, Run] = {}
    for run in runs:
        print_ = run.manifest.get("model", {}).get("fingerprint")
        if print_ in prints:
            raise UsageError(
                f"{prints[print_].where} and {run.where} are runs of one model; give one run of each (`compare` reads "
                "several runs of a model together)"
            )
        prints[print_] = run
    first = runs[0]
    texts = {d["name"]: d["fingerprint"] for d in first.documents}
    for run in runs[1:]:
        for name in (*MUST_AGREE, "mode"):
            here, there = first.configuration.get(name), run.configuration.get(name)
            if name not in _MAY_DIFFER and (here or None) != (there or None):
                raise UsageError(
                    f"{first.where} and {run.where} cannot be set beside each other: {name} is {here} in one and "
                    f"{there} in the other; measure with equal settings"
                )
        other = next(
            (d["name"] for d in run.documents if texts.get(d["name"], d["fingerprint"]) != d["fingerprint"]), None
        )
        if other is not None:
            raise UsageError(
                f"{first.where} and {run.where} differ in the text of document {other!r}; measure the same"
            )


def _shared(sets: Sequence[set[str]]) -> set[str]:
    return set.intersection(*sets)


#: What a rule is measured under, and the rule: (budget, mode, effect, layers, selector).
_Key = tuple[str, ...]


def _log_ratios(frame: pd.DataFrame, baseline: str) -> dict[_Key, tuple[Matrix, Matrix]]:
    """Every rule and its control, aligned, by what it was measured under."""
    return {
        tuple(str(one.about[name]) for name in (*_SAME, "selector")): (one.rule, one.control)
        for one in beside_baseline(frame, baseline)
    }


def _named(key: _Key) -> dict[str, str]:
    return dict(zip([*_SAME, "selector"], key, strict=True))


def _pairs(
    logs: dict[str, dict[_Key, tuple[Matrix, Matrix]]], keys: Sequence[_Key], margin: float, method: Method
) -> pd.DataFrame:
    """Every model beside the first."""
    first, *others = logs
    rows = []
    for key in keys:
        for name in others:
            (a, a_control), (b, b_control) = logs[name][key], logs[first][key]
            documents = np.intersect1d(a.documents, b.documents)
            a, a_control, b, b_control = (m.at(documents, m.low) for m in (a, a_control, b, b_control))
            for index, zone in enumerate(ZONES):
                with np.errstate(invalid="ignore", divide="ignore"):
                    mine = a.kl[:, index] / a_control.kl[:, index]
                    its = b.kl[:, index] / b_control.kl[:, index]
                flagged = any(m.below_floor[index] for m in (a, a_control, b, b_control))
                found = equivalence(mine, its, margin, level=method.level)
                rows.append(
                    {
                        **_named(key),
                        **{"zone": zone, "model": name, "over": first, "ratio": found.ratio},
                        **{"ratio_low": found.low, "ratio_high": found.high, "finding": found.in_words},
                        **{"n": found.n, "flagged": flagged, "reason": found.reason or ""},
                    }
                )
    return pd.DataFrame(rows)


def _means(logs: dict[str, dict[_Key, tuple[Matrix, Matrix]]], keys: Sequence[_Key], method: Method) -> pd.DataFrame:
    """Every rule over all models."""
    rows = []
    for key in keys:
        for index, zone in enumerate(ZONES):
            frame = pd.concat([_column(name, *found[key], index) for name, found in logs.items()], ignore_index=True)
            row: dict[str, Any] = {**_named(key), "zone": zone, "models": len(logs)}
            row |= dict.fromkeys(("ratio", "ratio_low", "ratio_high", "sd_model"), math.nan)
            row |= {"n": frame["document"].nunique(), "reason": ""}
            if len(logs) < FEWEST_MODELS:
                row["reason"] = f"a mean over models needs {FEWEST_MODELS} of them, there are {len(logs)}"
            elif not np.isfinite(frame["y"]).all():
                row["reason"] = "no ratio: a document has a value of 0 or below"
            else:
                row |= over_models(frame, method)
            rows.append(row)
    return pd.DataFrame(rows)


def _column(name: str, rule: Matrix, control: Matrix, index: int) -> pd.DataFrame:
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.log(rule.kl[:, index]) - np.log(control.kl[:, index])
    return pd.DataFrame({"y": y, "model": name, "document": rule.documents})


def over_models(frame: pd.DataFrame, method: Method = STUDENT) -> dict[str, Any]:
    """The mean ratio over models and documents, both random.

    Args:
        frame: columns `y` (log ratio), `model`, `document`.

    Returns:
        `ratio`, `ratio_low`, `ratio_high` and `sd_model`, or `reason` where the model is singular.
    """
    models = frame["model"].nunique()
    components = {"models": "0 + C(model)", "documents": "0 + C(document)"}
    try:
        fitted = fit_mixed(
            frame, "y ~ 1", np.ones(len(frame)), components, df=models - 1, needed=("models",), intercept=False
        )
    except Singular as error:
        return {"reason": f"singular: {error}, so that no numbers are given"}
    found = fitted.contrast({"Intercept": 1.0}, method.level)
    value, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
    return {"ratio": value, "ratio_low": low, "ratio_high": high, "sd_model": fitted.sds["models"]}

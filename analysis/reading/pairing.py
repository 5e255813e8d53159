"""Which rule is set beside which: baselines, position-matched controls, and the documents that both have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from forward_influence.analysis.reading.curves import RULE
from forward_influence.analysis.reading.held import held_remark
from forward_influence.analysis.reading.matrix import Matrix, matrix
from forward_influence.errors import ForwardInfluenceError, UsageError, did_you_mean

#: Everything but the selector: rules are compared within one run, budget, mode, effect and set of layers.
CONDITIONS = [name for name in RULE if name != "selector"]
RANDOM = "random"
POSITION_MATCHED = "position-matched"
#: Rules that are there to be compared against.
CONTROLS = (RANDOM, "random-protected", "prompt-recent", POSITION_MATCHED, "recent", "first")


#: What an entry of the cache is called that a rule of some grain chooses; from the finest to the coarsest.
CHOSEN = {"entry": "entries", "layer": "tokens of a layer", "token": "whole tokens"}


@lru_cache(maxsize=1000)
def canonical(text: str) -> str:
    """A rule as runs store it, parameters at their defaults left out; the text itself where no such rule loads here."""
    from forward_influence.selectors import parse_selector  # brings torch, which reading a run does without

    try:
        return parse_selector(text).spec
    except ForwardInfluenceError:
        return text


def meant(text: str, measured: Sequence[str]) -> str | None:
    """Which of the measured specs a rule as typed stands for; None if none does."""
    if text in measured:
        return text
    spec = canonical(text)
    return spec if spec in measured else None


def measured_rule(text: str, measured: Sequence[str]) -> str:
    """As `meant`.

    Raises:
        UsageError: it was not measured; what was is named.
    """
    spec = meant(text, measured)
    if spec is None:
        raise UsageError(
            f"rule {text!r} was not measured{did_you_mean(text, measured)}; measured: {', '.join(measured)}"
        )
    return spec


def is_control(selector: str) -> bool:
    """Whether a rule is there to be compared against."""
    return any(is_called(selector, name) for name in CONTROLS)


def without_controls(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows of a frame in which no column (by default `selector`) names a control."""
    names = frame[list(columns or ("selector",))].to_numpy()
    return frame[np.array([not any(is_control(str(name)) for name in row) for row in names], dtype=bool)]


def is_called(selector: str, name: str) -> bool:
    """Whether a selector spec is the rule `name`, with any parameters: "random:per=token" is called "random"."""
    return selector == name or selector.startswith(name + ":")


def variants(selectors: list[str], name: str) -> list[str]:
    """The specs meant by `name`: one spec where it has parameters, else every spec of the rule so called."""
    if ":" in name:
        spec = meant(name, selectors)
        return [] if spec is None else [spec]
    return [s for s in selectors if is_called(s, name)]


def grains(frame: pd.DataFrame) -> dict[str, str]:
    """The grain (`per`: entry, layer or token; "" where nothing was chosen) of each selector in a frame."""
    return {str(s): str(p) for s, p in frame.groupby("selector", sort=False)["per"].first().items()}


def baseline_for(frame: pd.DataFrame, selector: str, name: str = RANDOM) -> str | None:
    """The spec of the rule `name` to set `selector` beside: of the same grain if there is one, else the first; or None.

    For "position-matched" it is the control made from `selector`, and no other.

    Args:
        frame: rows of rules measured under equal conditions.
    """
    if name == POSITION_MATCHED:
        return position_control_for(frame, selector)
    per = grains(frame)
    found = variants(list(per), name)
    same = [s for s in found if per[s] == per.get(selector)]
    return next(iter(same or found), None)


def position_control_for(frame: pd.DataFrame, selector: str) -> str | None:
    """The position-matched rule made from `selector`, or None."""
    found = []
    for control, parameters in frame.groupby("selector", sort=False)["parameters"].first().items():
        if is_called(str(control), POSITION_MATCHED) and json.loads(parameters or "{}").get("of_spec") == selector:
            found.append(str(control))
    per = grains(frame)
    return next(iter([s for s in found if per[s] == per.get(selector)] or found), None)


def pair_remarks(frame: pd.DataFrame, selector: str, control: str) -> list[str]:
    """What has to be known of one rule as a multiple of another: differing grains, and unequal numbers of entries held.

    Args:
        frame: rows of rules measured under equal conditions.
    """
    grain = grain_remark(grains(frame), selector, control, option_of(frame, control))
    return grain + held_remark(frame, selector, control)


def option_of(frame: pd.DataFrame, selector: str) -> str:
    """Under which choice of `measure` a selector of a frame was asked for."""
    return "`compressors`" if frame.loc[frame["selector"] == selector, "compressor"].any() else "`selectors`"


def grain_remark(per: dict[str, str], selector: str, control: str, option: str = "`selectors`") -> list[str]:
    """What it does to the multiple that a rule and its control choose at different grains; nothing where they do not.

    Removing a token from every head is a stronger intervention than removing as many scattered entries
    (docs/statistics.md), so that a coarser rule looks stronger than it is, and a finer one weaker.

    Args:
        per: from `grains`.
        option: of `measure`, under which the control was asked for.
    """
    mine, its = per[selector], per[control]
    order = list(CHOSEN)
    if mine == its or not {mine, its} <= set(order):
        return []
    wrong = "high" if order.index(mine) > order.index(its) else "low"
    remedy = _at_grain(control, mine)
    how = f" (add {option} {remedy})" if remedy != control else ""
    return [f"{CHOSEN[mine]} against {control}'s {CHOSEN[its]}, so that the multiple is too {wrong}{how}"]


def _at_grain(spec: str, per: str) -> str:
    """A rule's spec with another grain."""
    name, _, parameters = spec.partition(":")
    kept = [p for p in parameters.split(",") if p and not p.startswith("per=")]
    kept += [f"per={per}"] if per != "entry" else []
    return ":".join([name, ",".join(kept)]) if kept else name


def align(a: pd.DataFrame, b: pd.DataFrame) -> tuple[Matrix, Matrix] | None:
    """Two rules' frames as matrices over the documents and bins that both have; None without any."""
    if a.empty or b.empty:
        return None
    first, second = matrix(a), matrix(b)
    documents = np.intersect1d(first.documents, second.documents)
    bins = set(zip(first.low, first.high, strict=True)) & set(zip(second.low, second.high, strict=True))
    low = np.array(sorted(start for start, _ in bins))
    return (first.at(documents, low), second.at(documents, low)) if len(documents) and len(low) else None


@dataclass(frozen=True)
class Beside:
    """A rule and the baseline that it is set beside, at the documents and bins that both have.

    Attributes:
        about: the columns of `RULE`, and `per`.
        baseline: its spec.
        rule, control: their curves, aligned.
    """

    about: dict[str, Any]
    baseline: str
    rule: Matrix
    control: Matrix


def beside_baseline(curves: pd.DataFrame, baseline: str = RANDOM) -> Iterator[Beside]:
    """Every rule of every condition with its baseline; without the baselines, and rules that share no document with it.

    Args:
        curves: a tidy frame, binned in any way.
        baseline: a rule's name, or "position-matched".
    """
    for key, group in curves.groupby(CONDITIONS, sort=False):
        itself = variants(list(grains(group)), baseline)
        for selector, part in group.groupby("selector", sort=False):
            spec = None if selector in itself else baseline_for(group, str(selector), baseline)
            both = None if spec is None else align(part, group[group["selector"] == spec])
            if spec is not None and both is not None:
                about = {**dict(zip(CONDITIONS, key, strict=True)), "selector": str(selector)}
                yield Beside({**about, "per": part["per"].iloc[0]}, spec, *both)

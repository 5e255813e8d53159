"""Which rule is set beside which: baselines, position-matched controls, and the documents that both have."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from forward_influence.analysis.curves import RULE, Matrix, matrix

#: Everything but the selector: rules are compared within one run, budget, mode, effect and set of layers.
CONDITIONS = [name for name in RULE if name != "selector"]
RANDOM = "random"
POSITION_MATCHED = "position-matched"
#: Rules that are there to be compared against.
CONTROLS = (RANDOM, POSITION_MATCHED, "recent", "first")


def is_called(selector: str, name: str) -> bool:
    """Whether a selector spec is the rule `name`, with any parameters: "random:per=token" is called "random"."""
    return selector == name or selector.startswith(name + ":")


def variants(selectors: list[str], name: str) -> list[str]:
    """The specs meant by `name`: one spec where it has parameters, else every spec of the rule so called."""
    return [name] if ":" in name and name in selectors else [s for s in selectors if is_called(s, name)]


def grains(frame: pd.DataFrame) -> dict[str, str]:
    """The grain (`per`: entry, layer or token) of each selector in a frame."""
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
    """The position-matched rule made from `selector` (its parameter `of`), or None."""
    found = []
    for control, parameters in frame.groupby("selector", sort=False)["parameters"].first().items():
        if (
            is_called(str(control), POSITION_MATCHED)
            and _spec(json.loads(parameters or "{}").get("of", "")) == selector
        ):
            found.append(str(control))
    per = grains(frame)
    return next(iter([s for s in found if per[s] == per.get(selector)] or found), None)


def _spec(nested: str) -> str:
    """A rule inside a parameter as one types it outside: attention(window=32) is attention:window=32."""
    name, parenthesis, rest = nested.partition("(")
    return f"{name}:{rest.removesuffix(')')}" if parenthesis and rest != ")" else name


def align(a: pd.DataFrame, b: pd.DataFrame) -> tuple[Matrix, Matrix] | None:
    """Two rules' frames as matrices over the documents and bins that both have; None without any."""
    keys = ["document", "low", "high"]
    common = pd.merge(a[keys], b[keys])
    if not len(common):
        return None
    first, second = matrix(a.merge(common)), matrix(b.merge(common))
    if not np.array_equal(first.low, second.low):
        return None
    return first, second

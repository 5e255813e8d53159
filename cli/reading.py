"""Which results of runs are read and how intervals are made: the options that `compare`, `plot` and `report` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forward_influence.utils.configuration import READING, Configuration, described, option
from forward_influence.utils.margins import MARGIN, check_margin


@described
@dataclass(frozen=True)
class Reading(Configuration):
    """How runs are read."""

    baseline: str = option("random", "The rule that the others are set against.", READING)
    budgets: tuple[str, ...] = option((), "Only this budget, repeatable.", READING, typed="budget", shown="all")
    cluster: str | None = option(
        None,
        "Field of the documents whose groups are the unit, such as `author`.",
        READING,
        shown="each document is one",
    )
    bootstrap: bool = option(False, "Bootstrap intervals over documents rather than t-intervals on logs.", READING)

    @property
    def inference(self) -> dict[str, Any]:
        """How intervals are made, in the words of `analysis`."""
        return {"cluster": self.cluster, "method": "bootstrap" if self.bootstrap else "t"}


@described
@dataclass(frozen=True)
class Equal(Configuration):
    """What is called equal."""

    margin: float = option(
        MARGIN,
        "A ratio closer to 1 than by this factor is equal, 1.1 for +-10%: named before one looks.",
        READING,
        metavar="FACTOR",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_margin(self.margin)

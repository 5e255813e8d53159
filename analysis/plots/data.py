"""What pictures are drawn from: the curves and selections of runs, read once and filtered once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from forward_influence.analysis import curves, overlap, tokens
from forward_influence.analysis.style import RuleStyle, rule_styles
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.runs import Run


@dataclass(frozen=True)
class PlotData:
    """Runs and what to show of them.

    Attributes:
        runs: one or several, drawn together where a picture can.
        width, log: bins of distance, as in `curves.bins`.
        selectors: only these rules, in this order; empty = all, in the order measured.
        budget: only this budget, as written in the run; None = all.
        baseline: the rule that ratios are taken to.
        read: `frames` of the same runs and bins, where they were read before.
    """

    runs: Sequence[Run]
    width: int = curves.BIN_WIDTH
    log: bool = False
    selectors: tuple[str, ...] = ()
    budget: str | None = None
    baseline: str = "random"
    read: list[pd.DataFrame] | None = field(default=None, repr=False)

    @cached_property
    def frames(self) -> list[pd.DataFrame]:
        """Unfiltered curves in bins, in zones, and in log-spaced bins."""
        if self.read is not None:
            return self.read
        frames = curves.read(
            self.runs,
            [
                lambda m: curves.bins(m, self.width, log=self.log),
                curves.zone_edges,
                lambda m: curves.bins(m, log=True),
            ],
        )
        return [frames[0], curves.name_zones(frames[1]), frames[2]]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Curves in bins, of the rules and budget asked for, all layers ablated together."""
        return self._kept(_whole(self.frames[0]))

    @cached_property
    def everything(self) -> pd.DataFrame:
        """As `curves` with every rule, for a control that was not asked for by name."""
        frame = _whole(self.frames[0])
        return frame if self.budget is None else frame[frame["budget"] == self.budget]

    @cached_property
    def zones(self) -> pd.DataFrame:
        """As `curves` in three bins: near, middle, far (column `zone`)."""
        return self._kept(_whole(self.frames[1]))

    @cached_property
    def log_curves(self) -> pd.DataFrame:
        """As `curves` in log-spaced bins, which fits and crossovers are made from."""
        return self._kept(_whole(self.frames[2]))

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """Curves of layers ablated one by one, in log-spaced bins; empty if there were none."""
        frame = self.frames[2]
        return self._kept(frame[frame["layers"] != "all"], may_be_empty=True)

    @property
    def sweep_is_empty(self) -> bool:
        """Whether no layers were ablated one by one."""
        return self.sweep.empty

    @cached_property
    def measured_rules(self) -> list[str]:
        """Every rule of the runs, in the order asked for."""
        return list(dict.fromkeys(s for run in self.runs for s in run.configuration["selectors"]))

    @cached_property
    def styles(self) -> dict[str, RuleStyle]:
        """The style of every rule of the runs, drawn or not."""
        found = self.frames[0]["selector"].unique().tolist()
        return rule_styles([*self.measured_rules, *found])

    @cached_property
    def run(self) -> Run:
        """The one run, for pictures of selections.

        Raises:
            UsageError: there are several.
        """
        if len(self.runs) != 1:
            raise UsageError(f"pictures of selections are drawn from one run, not {len(self.runs)}; give one")
        return self.runs[0]

    @cached_property
    def overlap(self) -> pd.DataFrame:
        """`overlap.overlap` of the rules and budget asked for."""
        return self._kept_selections(overlap.overlap(self.run, selectors=self.selectors or None, budget=self.budget))

    @cached_property
    def shares(self) -> pd.DataFrame:
        """`tokens.token_shares` of the rules and budget asked for."""
        frame = tokens.token_shares(self.run, selectors=self.selectors or None, budget=self.budget)
        return self._kept_selections(frame)

    def _kept_selections(self, frame: pd.DataFrame) -> pd.DataFrame:
        if frame.empty:
            self._check()
            raise UsageError(
                f"{self.run.folder} holds no selections of what was asked for; choose another rule or budget"
            )
        return frame

    def _check(self) -> None:
        """Refuse rules and budgets that no run holds, naming what it holds."""
        frame = self.frames[0]
        rules = frame["selector"].unique().tolist()
        for selector in self.selectors:
            if selector not in rules:
                raise UsageError(
                    f"rule '{selector}' was not measured{did_you_mean(selector, rules)}; measured: {', '.join(rules)}"
                )
        budgets = frame["budget"].unique().tolist()
        if self.budget is not None and self.budget not in budgets:
            raise UsageError(f"budget '{self.budget}' was not measured; measured: {', '.join(budgets)}")

    def _kept(self, frame: pd.DataFrame, may_be_empty: bool = False) -> pd.DataFrame:
        self._check()
        if self.selectors:
            frame = frame[frame["selector"].isin(self.selectors)]
        if self.budget is not None:
            frame = frame[frame["budget"] == self.budget]
        if frame.empty and not may_be_empty:
            raise UsageError("nothing to draw: no condition has both that rule and that budget; leave one of them out")
        return frame


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    whole = frame[frame["layers"] == "all"]
    if whole.empty:
        raise UsageError("this run ablated its layers one by one; draw it with --kind layers")
    return whole

"""What pictures are drawn from: the curves and selections of runs, read once and filtered once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from forward_influence.analysis.formatting.held_words import entries
from forward_influence.analysis.formatting.style import RuleStyle, rule_styles
from forward_influence.analysis.measures import overlap, tokens
from forward_influence.analysis.measures.compare import measured_budget
from forward_influence.analysis.measures.summary import unfinished
from forward_influence.analysis.reading import curves
from forward_influence.analysis.reading.pairing import measured_rule
from forward_influence.analysis.reading.selections import has_selections, of_several, require_selections
from forward_influence.analysis.statistics.inference import Kind
from forward_influence.analysis.statistics.stopping import method_for
from forward_influence.errors import UsageError
from forward_influence.storage.run import Run


@dataclass(frozen=True)
class PlotData:
    """Runs and what to show of them.

    Attributes:
        runs: one or several; several get panels of their own.
        width: tokens per bin of distance; None = as `binning.bin_width` chooses.
        log: log-spaced bins instead.
        selectors: only these rules, as typed; empty = all.
        budgets: only these; empty = all.
        baseline: the rule that ratios are taken to.
        cluster: field of the documents whose groups are the unit; None = the document is.
        method: how intervals are made.
        read: curves of the same runs, bins and cluster, where they were read before.
    """

    runs: Sequence[Run]
    width: int | None = None
    log: bool = False
    selectors: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    baseline: str = "random"
    cluster: str | None = None
    method: Kind = "t"
    read: curves.Curves | None = field(default=None, repr=False)

    @property
    def inference(self) -> dict[str, Any]:
        """`clustered` and `method`, as everything that makes an interval takes them."""
        return {"clustered": self.cluster is not None, "method": method_for(self.runs, self.method)}

    @cached_property
    def frames(self) -> curves.Curves:
        """Unfiltered curves."""
        if self.read is not None:
            return self.read

        def bins(continuation: int, stretch: int) -> curves.Edges:
            return curves.bins(continuation, self.width, stretch=stretch, log=self.log)

        return curves.read_curves(self.runs, bins, cluster=self.cluster)

    @cached_property
    def rules(self) -> list[str]:
        """Every rule measured, in the order measured."""
        return [str(s) for s in self.frames.even["selector"].unique()]

    @cached_property
    def wanted_rules(self) -> list[str]:
        """The measured rules asked for, in the order asked for.

        Raises:
            UsageError: one was not measured.
        """
        return list(dict.fromkeys(measured_rule(text, self.rules) for text in self.selectors)) or self.rules

    @cached_property
    def wanted_budgets(self) -> list[str]:
        """The measured budgets asked for.

        Raises:
            UsageError: one was not measured.
        """
        measured = [str(b) for b in self.frames.even["budget"].unique()]
        return list(dict.fromkeys(measured_budget(text, measured) for text in self.budgets)) or measured

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Curves in bins, of the rules and budgets asked for, all layers ablated together."""
        return self._kept(_whole(self.frames.even))

    @cached_property
    def everything(self) -> pd.DataFrame:
        """As `curves` with every rule, for a control that was not asked for by name."""
        frame = _whole(self.frames.even)
        return frame[frame["budget"].isin(self.wanted_budgets)]

    @cached_property
    def zones(self) -> pd.DataFrame:
        """As `curves` in three bins: near, middle, far (column `zone`)."""
        return self._kept(_whole(self.frames.zones))

    @cached_property
    def log_curves(self) -> pd.DataFrame:
        """As `curves` in log-spaced bins, which fits are made from."""
        return self._kept(_whole(self.frames.log))

    @cached_property
    def fine_curves(self) -> pd.DataFrame:
        """As `curves` in the narrowest bins, which crossovers are made from."""
        return self._kept(_whole(self.frames.fine))

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """Curves of layers ablated one by one, in log-spaced bins; empty if there were none."""
        frame = self.frames.log
        return self._kept(frame[frame["layers"] != "all"], may_be_empty=True)

    @cached_property
    def styles(self) -> dict[str, RuleStyle]:
        """The style of every rule of the runs, drawn or not."""
        asked = [s for run in self.runs for s in run.configuration.get("selectors", [])]
        return rule_styles([*asked, *self.rules])

    @cached_property
    def labels(self) -> dict[str, str]:
        """What legends call each rule that holds something: its name, and how many entries at each of the budgets."""
        frame = self.frames.zones[self.frames.zones["budget"].isin(self.wanted_budgets)]
        held = frame[frame["held"].notna()].groupby(["selector", "run", "budget"], sort=False)["held"].mean()
        counts: dict[str, list[str]] = {}
        for (selector, *_), count in held.items():
            counts.setdefault(str(selector), []).append(entries(count))
        return {rule: f"{rule} (holds {', '.join(dict.fromkeys(each))})" for rule, each in counts.items()}

    def whose(self, rule: str) -> str:
        """ "random's" on an axis, and in a line of its own how many entries it holds, if it holds any."""
        return f"{rule}'s" + self.labels.get(rule, rule).removeprefix(rule).replace(" (", "\n(")

    @cached_property
    def selecting(self) -> dict[str, Run]:
        """The runs that saved selections, by name: what pictures of selections are drawn from."""
        return {name: run for name, run in curves.named(self.runs).items() if has_selections(run)}

    def remarks(self, of_selections: bool = False) -> list[str]:
        """Lines on what the pictures of these runs lack: documents not measured yet, runs without selections.

        Args:
            of_selections: the picture is one of selections.
        """
        runs = curves.named(self.runs)
        without = [name for name in runs if name not in self.selecting] if of_selections else []
        left_out = [f"left out, no saved selections: {', '.join(without)}"] if without else []
        return unfinished(runs, self.frames.zones) + left_out

    def alone(self, name: str) -> PlotData:
        """The same of one run, by its name among these."""
        rows = self.frames.where(lambda frame: frame["run"] == name)
        return replace(self, runs=(curves.named(self.runs)[name],), read=rows)

    @cached_property
    def overlap(self) -> pd.DataFrame:
        """`overlap.overlap` of the rules and budgets asked for."""
        return self._some(of_several(overlap.overlap, self._some_selecting, **self._chosen))

    @cached_property
    def profile(self) -> pd.DataFrame:
        """`tokens.token_profile` of the rules and budgets asked for."""
        shares = of_several(tokens.token_shares, self._some_selecting, **self._chosen)
        return tokens.token_profile(self._some(shares), **self.inference)

    @property
    def _chosen(self) -> dict[str, Any]:
        return {"selectors": self.wanted_rules, "budgets": self.wanted_budgets, "cluster": self.cluster}

    @property
    def _some_selecting(self) -> dict[str, Run]:
        if not self.selecting:
            require_selections(self.runs[0], "this picture")
        return self.selecting

    def _some(self, frame: pd.DataFrame) -> pd.DataFrame:
        if frame.empty:
            where = ", ".join(run.where for run in self.selecting.values())
            raise UsageError(f"{where}: no selections of what was asked for; choose another rule or budget")
        return frame

    def _kept(self, frame: pd.DataFrame, may_be_empty: bool = False) -> pd.DataFrame:
        kept = frame[frame["selector"].isin(self.wanted_rules) & frame["budget"].isin(self.wanted_budgets)]
        if kept.empty and not may_be_empty:
            raise UsageError("nothing to draw: no condition has both that rule and that budget; leave one of them out")
        return kept


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    whole = frame[frame["layers"] == "all"]
    if whole.empty:
        raise UsageError("this run ablated its layers one by one; draw it with `kind` layers")
    return whole

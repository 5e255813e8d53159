"""What rules select, of runs read together: what tables of selections are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import pandas as pd

from forward_influence.analysis.measures.overlap import overlap
from forward_influence.analysis.measures.tokens import token_profile, token_shares
from forward_influence.analysis.reading.selections import of_several
from forward_influence.analysis.statistics.inference import Kind
from forward_influence.analysis.statistics.stopping import method_for
from forward_influence.storage.run import Run


class Selections(Protocol):
    """What tables of selections are made from: `Selected`, or a report's `PlotData`."""

    @property
    def overlap(self) -> pd.DataFrame:
        """As `overlap.overlap` gives it, each run by itself (column `run`)."""

    @property
    def profile(self) -> pd.DataFrame:
        """As `tokens.token_profile` gives it, each run by itself (column `run`)."""

    @property
    def inference(self) -> dict[str, Any]:
        """`clustered` and `method`, as everything that makes an interval takes them."""


@dataclass(frozen=True)
class Selected:
    """The selections of runs, read when they are looked at.

    Attributes:
        runs: by name, as `curves.named` gives them.
        budgets: only these, as written in the runs; None for all.
        cluster, kind: as `cluster` and `method` of `compare`.

    Raises:
        UsageError: a run holds no selections.
    """

    runs: Mapping[str, Run]
    budgets: Sequence[str] | None = None
    cluster: str | None = None
    kind: Kind = "t"

    @cached_property
    def inference(self) -> dict[str, Any]:
        """As of `Selections`."""
        return {"clustered": self.cluster is not None, "method": method_for(list(self.runs.values()), self.kind)}

    @cached_property
    def overlap(self) -> pd.DataFrame:
        """As of `Selections`."""
        return of_several(overlap, self.runs, budgets=self.budgets, cluster=self.cluster)

    @cached_property
    def profile(self) -> pd.DataFrame:
        """As of `Selections`."""
        shares = of_several(token_shares, self.runs, budgets=self.budgets, cluster=self.cluster)
        return token_profile(shares, **self.inference)

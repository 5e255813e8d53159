"""How well estimates of influence rank rules: rank correlation with what was measured, by bin and number of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr


def agreement(frame: pd.DataFrame, samples: Sequence[int]) -> pd.DataFrame:
    """Spearman's rank correlation over rules between estimated and exact influence.

    Args:
        frame: a row per document, rule and bin (draws and segments may repeat, they are averaged): `document`,
            `selector`, `budget`, `bin`, `estimates` (array, one per label sample), `exact`.
        samples: how many label samples to use; numbers beyond those there are left out.

    Returns:
        `bin`, `samples`, `rules`, `documents`; `within`: mean over documents of each document's correlation, `lowest`:
        the smallest of them; `pooled`: correlation of geometric means over documents.
    """
    most = min(len(estimates) for estimates in frame["estimates"])
    rows = []
    for name, part in frame.groupby("bin", sort=False):
        for count in [s for s in samples if s <= most]:
            some = part.assign(estimate=[float(np.mean(e[:count])) for e in part["estimates"]])
            values = some.groupby(["document", "selector", "budget"], sort=False)[["estimate", "exact"]].mean()
            found = [
                spearmanr(one["estimate"], one["exact"]).statistic
                for _, one in values.groupby(level="document", sort=False)
            ]
            logs = np.log(values.clip(lower=np.finfo(float).tiny)).groupby(level=["selector", "budget"]).mean()
            pooled = spearmanr(logs["estimate"], logs["exact"]).statistic
            rows.append((name, count, len(logs), len(found), np.mean(found), np.min(found), pooled))
    return pd.DataFrame(rows, columns=["bin", "samples", "rules", "documents", "within", "lowest", "pooled"])

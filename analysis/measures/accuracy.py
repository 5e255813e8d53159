"""Accuracy of compressors on tasks, paired with the full cache (or another compressor) on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from forward_influence.analysis.formatting.held_words import entries
from forward_influence.analysis.reading.held import against, held_notes
from forward_influence.analysis.reading.pairing import CHOSEN
from forward_influence.analysis.statistics.inference import CONFIDENCE, bootstrap_interval, t_interval, wilcoxon
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.storage.evaluation import FULL
from forward_influence.storage.shards import HELD

HELD_COLUMN = "held (chosen)"
#: What one accuracy is of.
CELL = ["task", "family", "reasons", "length", "protocol", "compressor", "budget"]


def is_binary(scores: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def accuracy_interval(scores: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean of scores (n,) in 0..1 with its interval: Wilson's where all are 0 or 1, else a bootstrap."""
    x = np.asarray(scores, dtype=float)
    if is_binary(x):
        ci = stats.binomtest(int(x.sum()), len(x)).proportion_ci(confidence, method="wilson")
        return float(x.mean()), float(ci.low), float(ci.high)
    return tuple(float(v) for v in bootstrap_interval(x, confidence))  # type: ignore[return-value]


def paired_difference(
    scores: np.ndarray, baseline: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float, float, float]:
    """Mean of scores - baseline on the same items, its interval, and a two-sided p-value.

    Where all are 0 or 1: the adjusted Wald interval of Bonett and Price (2012, doi:10.3102/1076998611411915), which
    adds one item to each of the two discordant counts and so has a width even where no item differs, and McNemar's
    exact test. Else a t-interval and Wilcoxon's signed-rank test.
    """
    x, y = np.asarray(scores, dtype=float), np.asarray(baseline, dtype=float)
    n, d = len(x), x - y
    if not (is_binary(x) and is_binary(y)):
        mean, low, high = t_interval(d, confidence)
        return float(mean), float(low), float(high), wilcoxon(d)
    better, worse = int((d > 0).sum()), int((d < 0).sum())
    up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    p = 1.0 if better + worse == 0 else float(stats.binomtest(better, better + worse).pvalue)
    return float(d.mean()), max(-1.0, up - down - half), min(1.0, up - down + half), p


def pass_at(correct: np.ndarray, runs: int, k: int) -> np.ndarray:
    """The chance that at least one of k answers is right, estimated without bias from `runs` of them.

    Args:
        correct: (items,) how many of an item's answers are right.
        k: 1 to `runs`.

    Returns:
        (items,) 1 - C(runs - correct, k) / C(runs, k) (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    wrong = runs - np.asarray(correct)
    return np.array([1 - math.comb(int(w), k) / math.comb(runs, k) for w in wrong], dtype=float)


def accuracy_table(frame: pd.DataFrame, baseline: str = FULL, k: int | None = None) -> pd.DataFrame:
    """One row per task, length, protocol, compressor and budget, paired with `baseline` item by item.

    Of several runs each item counts with its mean over them; intervals are bootstraps over items then.

    Args:
        frame: an evaluation's results (`Evaluation.frame()`).
        baseline: "full", or a compressor, which is then paired at the same budget.
        k: of pass@k; None: as many as there are runs. An answer is right with a score of 1.

    Returns:
        Columns `CELL`, items, runs, accuracy, low, high, difference, difference_low, difference_high, p, better, worse,
        same_response (share of answers that are word for word the baseline's), k, pass_at, pass_low, pass_high, tokens
        (mean length of answers), limited (share that ran into the limit, NaN where it was not noted), `HELD` (means),
        pinned_first and pinned_last (medians, NaN where nothing was removed), grain, baseline_held and baseline_grain
        (of what it is paired with), cache_bytes, full_bytes, compress_seconds (medians). Differences are NaN for the
        baseline itself and where no item has both.

    Raises:
        UsageError: the baseline was not evaluated, or k is larger than the number of runs.
    """
    known = frame["compressor"].unique().tolist()
    if baseline not in known:
        raise UsageError(f"{baseline!r} was not evaluated{did_you_mean(baseline, known)}; there are {', '.join(known)}")
    runs = int(frame["run"].nunique())
    if k is not None and not 1 <= k <= runs:
        raise UsageError(f"`pass_at` {k}: there are {runs} runs of each item; give 1 to {runs}")
    where = ["task", "length", "protocol"]
    references = {key: part.set_index(["item", "run"]) for key, part in _baselines(frame, baseline, where)}
    rows = []
    for key, part in frame.groupby(CELL, sort=False):
        cell = dict(zip(CELL, key, strict=True))
        reference_key = (*(cell[c] for c in where), *([] if baseline == FULL else [cell["budget"]]))
        reference = None if cell["compressor"] == baseline else references.get(reference_key)
        rows.append({**cell, **_estimates(part, reference, k)})
    return pd.DataFrame(rows)


def _baselines(frame: pd.DataFrame, baseline: str, where: Sequence[str]) -> Any:
    part = frame[frame["compressor"] == baseline]
    return part.groupby([*where, *([] if baseline == FULL else ["budget"])], sort=False)


def _estimates(part: pd.DataFrame, reference: pd.DataFrame | None, k: int | None) -> dict[str, Any]:
    by_item = part.groupby("item")["score"]
    scores, runs = by_item.mean().to_numpy(dtype=float), int(by_item.size().min())
    accuracy, low, high = _of_items(scores, runs)
    row: dict[str, Any] = {"items": len(scores), "runs": runs, "accuracy": accuracy, "low": low, "high": high}
    nan = float("nan")
    row |= {"difference": nan, "difference_low": nan, "difference_high": nan, "p": nan}
    row |= {"better": 0, "worse": 0, "same_response": nan}
    if reference is not None:
        columns = ["item", "run", "score", "response"]
        both = part[columns].merge(reference.reset_index()[columns], on=["item", "run"], suffixes=("", "_reference"))
        if len(both):
            means = both.groupby("item")[["score", "score_reference"]].mean()
            x, y = means["score"].to_numpy(float), means["score_reference"].to_numpy(float)
            estimates = paired_difference(x, y) if runs == 1 else _paired_over_runs(x, y)
            row |= dict(zip(("difference", "difference_low", "difference_high", "p"), estimates, strict=True))
            row |= {"better": int((x > y).sum()), "worse": int((x < y).sum())}
            row["same_response"] = float((both["response"] == both["response_reference"]).mean())
    row["k"] = min(k or runs, runs)
    right = part.assign(right=part["score"] == 1).groupby("item")["right"].sum().to_numpy()
    counts = by_item.size().to_numpy()
    chances = np.array([pass_at(right[i : i + 1], int(n), row["k"])[0] for i, n in enumerate(counts)])
    row |= dict(zip(("pass_at", "pass_low", "pass_high"), _of_items(chances, runs), strict=True))
    limited = part["limited"].dropna()
    row |= {"tokens": float(part["new_tokens"].mean()), "limited": float(limited.mean()) if len(limited) else nan}
    row |= {name: float(part[name].mean()) for name in HELD}
    for name in ("pinned_first", "pinned_last", "cache_bytes", "full_bytes", "compress_seconds"):
        row[name] = float(part[name].median())
    row |= {"grain": _grain(part), "baseline_held": nan, "baseline_grain": ""}
    if reference is not None:
        row |= {"baseline_held": float(reference["held"].mean()), "baseline_grain": _grain(reference)}
    return row


def _of_items(values: np.ndarray, runs: int) -> tuple[float, float, float]:
    """Mean over items (n,) and its interval; of several runs a bootstrap over items, whatever the values."""
    if runs == 1:
        return accuracy_interval(values)
    return tuple(float(v) for v in bootstrap_interval(values))  # type: ignore[return-value]


def _paired_over_runs(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of x - y over items (n,), each a mean over runs; a bootstrap over items, and Wilcoxon's p-value."""
    mean, low, high = bootstrap_interval(x - y)
    return float(mean), float(low), float(high), wilcoxon(x - y)


def _grain(part: pd.DataFrame) -> str:
    """The grain of most items; "" where nothing was chosen."""
    known = part["grain"].dropna()
    return str(known.mode().iloc[0]) if len(known) else ""


def accuracy_notes(table: pd.DataFrame, baseline: str = FULL) -> list[str]:
    """Lines for under accuracies of one length and protocol: what was held, pinned and chosen, and what is not equal.

    Args:
        table: rows of `accuracy_table`.
    """
    some = table[table["compressor"] != FULL]
    lines = held_notes(_held_table(some))
    remarks: dict[str, list[str]] = {}
    for row in some.to_dict("records"):
        if baseline == FULL or math.isnan(row["baseline_held"]):
            continue
        made = [_coarser(row["grain"], row["baseline_grain"], baseline)]
        if text := against({"one": row["held"], "other": row["baseline_held"]}, "one", "other"):
            made.append(f"{text} of {baseline}, not compared at equal size")
        for remark in filter(None, made):
            remarks.setdefault(remark, []).append(row["compressor"])
    return lines + [f"{', '.join(dict.fromkeys(names))}: {remark}" for remark, names in remarks.items()]


def _coarser(mine: str, its: str, baseline: str) -> str:
    """What it does to a difference that a compressor and its baseline choose at different grains: taking a token from
    every head is a stronger intervention than taking as many scattered entries; "" where they do not."""
    order = list(CHOSEN)
    if mine == its or not {mine, its} <= set(order):
        return ""
    wrong = "low" if order.index(mine) > order.index(its) else "high"
    return f"{CHOSEN[mine]} against {baseline}'s {CHOSEN[its]}, so that the difference is too {wrong}"


def _held_table(table: pd.DataFrame) -> pd.DataFrame:
    """What each compressor held at each budget, mean over tasks, as `held.held_table` gives it of a run."""
    rows = []
    for (budget, compressor), part in table.groupby(["budget", "compressor"], sort=False):
        ends = part[["pinned_first", "pinned_last"]].mean()
        known = None if ends.isna().any() else tuple(round(float(end)) for end in ends)
        means = {name: float(part[name].mean()) for name in HELD}
        rows.append({"selector": compressor, "budget": budget, "mode": "", "layers": "", **means, "ends": known})
    return pd.DataFrame(rows)


def budget_label(budget: str) -> str:
    """ "40%" for a fraction, "200 tokens" for a count, "200 held" for a number of entries held."""
    if budget.startswith("held="):
        return f"{budget.removeprefix('held=')} held"
    return f"{float(budget):.0%}" if "." in budget else f"{budget} tokens"


def paper_layout(table: pd.DataFrame, protocol: str, length: int) -> pd.DataFrame:
    """Compressors by tasks and budgets, accuracy in percent; "chain of thought / direct" where a task has both.

    What each compressor holds stands beside it, of which it chose: entries per layer and head, mean over tasks, one
    budget after the other. `*` marks a paired 95% interval of the difference to the baseline that leaves out 0. A frame
    of strings.
    """
    part = table[(table["protocol"] == protocol) & (table["length"] == length)]
    budgets = [b for b in part["budget"].unique() if b != "1.0"]
    rows = []
    for compressor in sorted(part["compressor"].unique(), key=lambda name: name != FULL):
        row = {"compressor": compressor}
        own = part[part["compressor"] == compressor]
        row[HELD_COLUMN] = _held_at(own, budgets) if compressor != FULL else entries(own["held"].mean())
        for family in part["family"].unique():
            for budget in budgets or ["1.0"]:
                wanted = "1.0" if compressor == FULL else budget
                found = own[(own["family"] == family) & (own["budget"] == wanted)]
                column = f"{family} {budget_label(budget)}" if budgets else str(family)
                row[column] = " / ".join(
                    _cell(r) for r in found.sort_values("reasons", ascending=False).to_dict("records")
                )
        rows.append(row)
    return pd.DataFrame(rows)


def _held_at(own: pd.DataFrame, budgets: Sequence[str]) -> str:
    """ "200 (132), 50 (21)": held and chosen at each budget."""
    means = [own.loc[own["budget"] == budget, ["held", "chosen"]].mean() for budget in budgets]
    return ", ".join(f"{entries(at['held'])} ({entries(at['chosen'])})" for at in means if not math.isnan(at["held"]))


def _cell(row: dict[str, Any]) -> str:
    sure = row["difference_low"] > 0 or row["difference_high"] < 0
    return f"{100 * row['accuracy']:.0f}{'*' if sure else ''}"

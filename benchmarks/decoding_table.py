"""The table of docs/decoding.md: compressors while a model thinks: a fact planted in a thought, and chains of sums.

    python benchmarks/decoding_table.py                            60 items, 2 runs, qwen2.5-coder-1.5b: many hours
    python benchmarks/decoding_table.py --model smollm2-135m --tasks passcode:thought=400 --runs 1 --temperature 0 \\
        --minutes 17                                               a look
    python benchmarks/decoding_table.py --show                     the tables of results that are there

Compressed every 128 and every 256 tokens, a folder each. The two take turns, item by item, so that a run that is
stopped (`--minutes`) has as much of both. The same command again continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from forward_influence.utils.progress import Silent
from forward_influence.utils.threads import start_anew

TASKS = ("passcode:thought=400", "thinking:problem=chain_sum,tokens=192")
COMPRESSORS = ("infokv", "attention", "rpc", "rkv", "random-protected")
BUDGETS = ("0.5", "0.25")
EVERY = (128, 256)
LENGTH = 160


class _EnoughError(Exception):
    """The turn of this folder is over."""


class _Turn(Silent):
    """Ends an evaluation once so many pieces are answered, or when time is up."""

    def __init__(self, pieces: int, end: float) -> None:
        self._left, self._end = pieces, end

    def advance(self, tokens: int, what: str) -> None:
        """A piece is answered and kept."""
        self._left -= 1
        if self._left <= 0 or time.monotonic() > self._end:
            raise _EnoughError


def run(options: argparse.Namespace) -> None:
    """All folders in turns."""
    from forward_influence.evaluation.plan import Plan
    from forward_influence.evaluation.run import evaluate
    from forward_influence.models.loading import load_model

    end = time.monotonic() + 60 * options.minutes
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    going = list(EVERY)
    while going and time.monotonic() < end:
        for every in tuple(going):
            plan = Plan(
                tasks=tuple(options.tasks),
                compressors=COMPRESSORS,
                budgets=BUDGETS,
                lengths=(LENGTH,),
                items=options.items,
                protocol="seen",
                every=every,
                runs=options.runs,
                temperature=options.temperature,
            )
            command = f"python benchmarks/decoding_table.py --model {options.model}"
            try:
                evaluate(model, plan, folder(options, every), command=command, progress=_Turn(len(options.tasks), end))
                going.remove(every)
            except _EnoughError:
                if time.monotonic() > end:
                    return


def folder(options: argparse.Namespace, every: int) -> Path:
    """Where the results of a schedule lie."""
    return Path(options.out) / f"{options.model}-every-{every}"


def show(options: argparse.Namespace) -> None:
    """Accuracy, differences to the full cache and of InfoKV to the others, as Markdown."""
    from forward_influence.analysis.formatting.held_words import answer_cell, entries, protection
    from forward_influence.analysis.measures.accuracy import accuracy_table
    from forward_influence.cli.tables import interval, markdown
    from forward_influence.storage.evaluation import open_evaluation

    for every in EVERY:
        if not folder(options, every).exists():
            continue
        evaluation = open_evaluation(folder(options, every))
        frame = evaluation.frame()
        found = {name: accuracy_table(frame, name) for name in ("full", *COMPRESSORS)}
        table = found["full"].copy()
        table["accuracy [95%]"] = [interval(r.accuracy, r.low, r.high, 2) for r in table.itertuples()]
        table["minus full [95%]"] = [
            interval(r.difference, r.difference_low, r.difference_high, 2) for r in table.itertuples()
        ]
        table["held"] = [entries(held) for held in table["held"]]
        table["answer"] = [answer_cell(row) for row in table.to_dict("records")]
        columns = ["task", "compressor", "budget", "items", "accuracy [95%]", "minus full [95%]", "held", "answer"]
        print(markdown(table[columns], f"{options.model}, question seen, compressed every {every} tokens"))
        print(f"- {protection(evaluation.configuration)}\n")
        rows = []
        for other in COMPRESSORS[1:]:
            against = found[other]
            for row in against[against["compressor"] == "infokv"].to_dict("records"):
                shown = interval(row["difference"], row["difference_low"], row["difference_high"], 2)
                rows.append({"task": row["task"], "budget": row["budget"], "against": other, "difference": shown})
        import pandas as pd

        compared = pd.DataFrame(rows).pivot(index=["task", "budget"], columns="against", values="difference")
        print(markdown(compared.reset_index(), f"InfoKV minus others on the same items, every {every} tokens"))


def main() -> None:
    """Evaluate, then show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long and show what is there")
    parser.add_argument("--out", default="evaluations/decoding")
    parser.add_argument("--show", action="store_true", help="evaluate nothing")
    options = parser.parse_args()
    if not options.show:
        run(options)
    show(options)


if __name__ == "__main__":
    start_anew()
    main()

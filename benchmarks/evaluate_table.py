"""The table of docs/evaluation.md: compressors by budgets on tasks that SmolLM2-135M can do, both protocols.

    python benchmarks/evaluate_table.py --device cuda --processes 8      100 items; minutes on a large GPU
    python benchmarks/evaluate_table.py --items 6 --out evaluations/try  a look, on a laptop
    python benchmarks/evaluate_table.py --show --out evaluations/table   the tables of results that are there

Several processes fill one folder: small models leave a GPU idle between kernels, and each process answers with all
compressors side by side. The same command again continues; `--minutes` ends in time, with a whole number of items.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from forward_influence.utils.threads import processors, start_anew

COMPRESSORS = (
    "attention",
    "infokv",
    "pyramidkv:window=8",
    "expected-attention",
    "h2o",
    "streamingllm",
    "random",
)
BUDGETS = ("0.4", "0.2", "0.1")
TASKS = ("facts", "variables", "needle")
LENGTH = 500


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("evaluations/table"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shard", default=None, help="i/n: one process's part")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long and show what is there")
    parser.add_argument("--show", action="store_true", help="evaluate nothing")
    return parser.parse_args()


def evaluate_shard(options: argparse.Namespace, shard: tuple[int, int]) -> None:
    """This process's part."""
    import torch

    from forward_influence.data.tasks import parse_task
    from forward_influence.evaluation.plan import Plan
    from forward_influence.evaluation.run import evaluate
    from forward_influence.models.loading import load_model

    if shard[1] > 1:
        torch.set_num_threads(max(1, processors() // shard[1]))
    plan = Plan(
        tasks=tuple(parse_task(task) for task in options.tasks),
        compressors=COMPRESSORS,
        budgets=BUDGETS,
        lengths=(options.length,),
        items=options.items,
    )
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    evaluate(model, plan, options.out, shard=shard, command="python benchmarks/evaluate_table.py")


def run_processes(options: argparse.Namespace) -> int:
    """All parts, each in a process of its own; the number that failed or were stopped."""
    words = [sys.executable, __file__, "--model", options.model, "--device", options.device, "--dtype", options.dtype]
    words += ["--items", str(options.items), "--length", str(options.length), "--out", str(options.out)]
    words += ["--tasks", *options.tasks]
    parts = [
        subprocess.Popen([*words, "--shard", f"{i}/{options.processes}"], env={**os.environ, "OMP_NUM_THREADS": "2"})
        for i in range(options.processes)
    ]
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    for part in parts:
        try:
            part.wait(None if end is None else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.terminate()
            part.wait()
    return sum(part.returncode != 0 for part in parts)


def show(folder: Path) -> None:
    """The tables as Markdown: the paper's layout per protocol, then InfoKV against attention, paired."""
    from forward_influence.analysis.formatting.held_words import held_pair
    from forward_influence.analysis.measures.accuracy import accuracy_notes, accuracy_table, paper_layout
    from forward_influence.cli.tables import interval, markdown, p_value
    from forward_influence.storage.evaluation import open_evaluation

    evaluation = open_evaluation(folder)
    frame = evaluation.frame()
    complete = frame.groupby("item")["task"].size()
    frame = frame[frame["item"].isin(complete[complete == complete.max()].index)]  # items that all tasks have
    items = frame["item"].nunique()
    table, against = accuracy_table(frame), accuracy_table(frame, "attention")
    model, device = evaluation.manifest["model"], evaluation.manifest["execution"]["device"]
    print(f"{model['spec']}, {model['dtype']}, {device}; {items} items per task\n")
    for length in table["length"].unique():
        for protocol in table["protocol"].unique():
            title = f"Question {protocol}, {length} tokens: accuracy in %; * differs from the full cache (95%, paired)"
            print(markdown(paper_layout(table, protocol, length), title))
            part = table[(table["length"] == length) & (table["protocol"] == protocol)]
            print("".join(f"- {line}\n" for line in accuracy_notes(part)))
    rows = against[against["compressor"] == "infokv"].copy()
    bounds = rows[["difference", "difference_low", "difference_high"]].to_numpy()
    rows["difference"] = [interval(*row, 2) for row in bounds]
    rows["p"] = [p_value(p) for p in rows["p"]]
    rows["held"] = [held_pair(row.held, row.baseline_held) for row in rows.itertuples()]
    columns = ["protocol", "task", "budget", "held", "difference", "better", "worse", "p", "same_response"]
    print(markdown(rows[columns].round(2), "InfoKV minus attention, same items and budget, 95% intervals"))
    seconds = frame.groupby("compressor", sort=False)["compress_seconds"].median() * 1000
    print(f"Median of choosing and copying, ms: {seconds.round(1).to_dict()}")
    once = frame.drop_duplicates(["task", "length", "protocol", "item"])
    print(
        f"Median per item: prefill {once.prefill_seconds.median():.2f} s, answers {once.answer_seconds.median():.2f} s"
    )


def main() -> None:
    """Evaluate, then show."""
    options = arguments()
    if options.shard is not None:
        first, second = options.shard.split("/")
        evaluate_shard(options, (int(first), int(second)))
        return
    failed = 0
    if not options.show:
        if options.processes > 1 or options.minutes:
            failed = run_processes(options)
        else:
            evaluate_shard(options, (0, 1))
    show(options.out)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    start_anew()
    main()

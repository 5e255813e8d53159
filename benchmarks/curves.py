"""Time and peak memory of the engine and the plain script against continuation, number of rules and vocabulary.

    python benchmarks/curves.py                     measure (a random Llama; about 15 minutes) and draw
    python benchmarks/curves.py --draw              draw what is in benchmarks/results/curves.json
    python benchmarks/curves.py --model smollm2-135m --continuations 512 1024 2048 --vocabularies

Times are processor seconds of both in turns in one process; peaks come from processes of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import RESULTS, RULES, load, machine, remember
from engine import call, peak_elsewhere

from forward_influence.utils.threads import start_anew

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "performance.png"
TITLES = {"continuation": "continuation (tokens)", "rules": "number of rules", "vocabulary": "vocabulary (words)"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:4x576", help="random:LAYERSxHIDDEN, or a model of one vocabulary")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--continuations", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--numbers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[8192, 32768, 131072])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    return parser.parse_args()


def settings(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One of the three varies, the others stay at 1,024 tokens, two rules and 49,152 words."""

    def one(along: str, continuation: int = 1024, number: int = 2, vocabulary: int = 49_152) -> dict[str, Any]:
        model = given.model if not given.model.startswith("random:") else f"{given.model}x{vocabulary}"
        at = {"continuation": continuation, "rules": number, "vocabulary": vocabulary}[along]
        return {
            "along": along,
            "at": at,
            "model": model,
            "context": given.context,
            "continuation": continuation,
            "rules": ",".join(RULES[:number]),
        }

    found = [one("continuation", continuation=m) for m in given.continuations]
    found += [one("rules", number=n) for n in given.numbers]
    return found + [one("vocabulary", vocabulary=v) for v in given.vocabularies]


def measure(given: argparse.Namespace) -> None:
    """Every setting, both ways."""
    (RESULTS / "curves.json").unlink(missing_ok=True)
    for setting in settings(given):
        options = argparse.Namespace(device="cpu", dtype="auto", chunk=512, threads=1, effect="total", **setting)
        torch.set_num_threads(options.threads)
        model, tokens = load(options.model, "cpu", "auto", options.context + options.continuation)
        for who in ("engine", "plain"):  # once for warmth
            call(argparse.Namespace(**{**vars(options), "context": 128}), who, model, tokens[:256])
        for who in ("engine", "plain"):
            started = time.process_time()
            call(options, who, model, tokens)
            entry = {**setting, "who": who, "cpu_seconds": round(time.process_time() - started, 3)}
            entry["bytes"] = peak_elsewhere(options, who)
            remember("curves", {**entry, **machine(torch.device("cpu"))})
            print(json.dumps(entry), flush=True)


def draw() -> None:
    """The results as a picture."""
    import seaborn as sns

    from forward_influence.analysis.formatting.style import house_style, new_figure, save

    frame = pd.DataFrame(json.loads((RESULTS / "curves.json").read_text()))
    frame["MB above the model"] = frame["bytes"] / 1e6
    frame = frame.rename(columns={"cpu_seconds": "processor seconds"})
    with house_style():
        figure = new_figure(width=6.5, height=3.6)
        axes = figure.subplots(2, len(TITLES), sharey="row")
        for column, (along, title) in enumerate(TITLES.items()):
            part = frame[frame["along"] == along]
            for row, what in enumerate(("processor seconds", "MB above the model")):
                axis = axes[row, column]
                sns.lineplot(part, x="at", y=what, hue="who", style="who", markers=True, ax=axis)
                axis.set(xscale="log", yscale="log", xlabel=title if row else "")
                axis.set_xticks(sorted(part["at"].unique()), [f"{at:,}" for at in sorted(part["at"].unique())])
                axis.minorticks_off()
                if row or column:
                    axis.get_legend().remove()
                else:
                    axis.legend(title="")
        save(figure, PICTURE)


def main() -> None:
    """Measure, and draw."""
    given = arguments()
    if not given.draw:
        measure(given)
    draw()


if __name__ == "__main__":
    start_anew()
    main()

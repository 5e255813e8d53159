"""Answers in one batch against the same answers one by one, each from a compressed cache of its own.

    OMP_NUM_THREADS=1 python benchmarks/batches.py            # 8 answers of 256 tokens after 512, SmolLM2-135M
    python benchmarks/batches.py --batch 16 --new 128 --device cuda --dtype bfloat16

Both ways alternate in one process, prompts are read in both; the same tokens are written, but for rounding. Printed are
seconds of reading the prompts and of writing, and their ratios; all runs are appended to
benchmarks/results/batches.json. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from common import load, machine, remember, seconds
from torch import Tensor

from forward_influence.compression import CompressedCache, Compressor, compress, make_compressor
from forward_influence.instrument.forward import next_logits
from forward_influence.utils.threads import start_anew


def answers(model: Any, prompts: Tensor, compressor: Compressor, new: int) -> tuple[Tensor, float, float]:
    """Tokens written (rows, new), seconds of reading the prompts (rows, n), and of writing."""
    written: list[Tensor] = []

    def read(cache: CompressedCache) -> None:
        written.append(next_logits(model.model, prompts, cache).argmax(-1))

    def write(cache: CompressedCache) -> None:
        for _ in range(new - 1):
            written.append(next_logits(model.model, written[-1][:, None], cache).argmax(-1))

    with torch.no_grad(), compress(model, compressor) as cache:
        reading = seconds(model.device, lambda: read(cache))
        writing = seconds(model.device, lambda: write(cache))
    return torch.stack(written, 1), reading, writing


def one_by_one(model: Any, prompts: Tensor, compressor: Compressor, new: int) -> tuple[Tensor, float, float]:
    """The same, each sequence by itself."""
    found = [answers(model, prompt[None], compressor, new) for prompt in prompts]
    return torch.cat([tokens for tokens, _, _ in found]), sum(r for _, r, _ in found), sum(w for _, _, w in found)


def measured(model: Any, prompts: Tensor, compressor: Compressor, new: int, repeats: int) -> dict[str, Any]:
    """Both ways in turns, and the medians of the ratios of neighbours."""
    answers(model, prompts[:2, :64], compressor, 4)  # once for warmth
    runs = []
    for i in range(repeats):
        ways = {"alone": one_by_one, "batch": answers}
        order = list(ways) if i % 2 == 0 else list(ways)[::-1]
        found = {name: ways[name](model, prompts, compressor, new) for name in order}
        entry = {
            name: {"reading": reading, "writing": writing, "seconds": reading + writing}
            for name, (_, reading, writing) in found.items()
        }
        same = (found["alone"][0] == found["batch"][0]).all(1).float().mean()
        runs.append({**entry, "answers_alike": float(same)})
    ratios = {
        what: statistics.median(run["alone"][what] / run["batch"][what] for run in runs)
        for what in ("seconds", "reading", "writing")
    }
    return {"compressor": compressor.name, "runs": runs, "times_as_fast": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model, or random:LAYERSxHIDDENxVOCABULARY")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compressor", default="infokv")
    parser.add_argument("--budget", default="0.25")
    parser.add_argument("--every", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    model, tokens = load(options.model, options.device, options.dtype, options.batch * options.prompt)
    prompts = tokens.view(options.batch, options.prompt).to(model.device)
    compressor = make_compressor(options.compressor, options.budget, every=options.every)
    found = {**vars(options), "dtype": str(model.dtype), **machine(model.device)}
    found |= measured(model, prompts, compressor, options.new, options.repeats)
    remember("batches", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    start_anew()
    main()

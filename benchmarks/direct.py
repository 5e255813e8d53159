"""How much faster the direct effect at sampled positions is than the total effect everywhere, on a real model.

    python benchmarks/direct.py --context 1024 --continuation 3072

One rule's selection; what is timed is the condition alone (forward pass, head, divergence), the full run's share apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from forward_influence.data.cutting import prepare
from forward_influence.data.documents import load_documents, sample_documents
from forward_influence.influence.ablation import removal
from forward_influence.influence.effects.direct import DIRECT
from forward_influence.influence.measure import measure_ablations
from forward_influence.measurement.positions import sampled_positions
from forward_influence.models.loading import load_model
from forward_influence.models.resolving import load_tokenizer, resolve_spec
from forward_influence.selectors import parse_selector, select
from forward_influence.tracing.needs import Needs
from forward_influence.tracing.recorder import record
from forward_influence.utils.threads import start_anew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--continuation", type=int, default=1024)
    parser.add_argument("--per-bin", type=int, default=16)
    parser.add_argument("--bin-width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    n, m = options.context, options.continuation
    spec = resolve_spec(options.model)
    model = load_model(spec, device=options.device)
    ordered = sample_documents(load_documents(["sotu"]), None, 0)
    [document] = prepare(ordered, load_tokenizer(spec), n, m, 1, 1).documents
    tokens = document.segments[0]
    rule = parse_selector("attention")
    trace = record(model, tokens[:n], Needs.merge(rule.needs), span=n + m, first=4, last=n - 64)
    selection = select(rule, trace, n // 5)
    where = sampled_positions(m, options.per_bin, options.bin_width, 0)
    ways = {
        "total, all positions": removal(trace, selection, "drop", m),
        "total, sampled": removal(trace, selection, "drop", m, positions=where),
        "direct, all positions": removal(trace, selection, "drop", m, effect=DIRECT),
        "direct, sampled": removal(trace, selection, "drop", m, positions=where, effect=DIRECT),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ["full run", *ways]}
    for _ in range(options.repeats):
        seconds["full run"].append(timed(model, trace, tokens[n:], []))
        for name, ablation in ways.items():  # three conditions less one: what two more cost
            three, one = (timed(model, trace, tokens[n:], [ablation] * count) for count in (3, 1))
            seconds[name].append((three - one) / 2)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["total, all positions"] / medians["direct, sampled"]
    print(json.dumps({"seconds": medians, "times_as_fast": ratio, "positions": [len(where), m]}, indent=1))


def timed(model: object, trace: object, continuation: torch.Tensor, ablations: list) -> float:
    begun = time.perf_counter()
    measure_ablations(model, trace, continuation, ablations)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    start_anew()
    main()

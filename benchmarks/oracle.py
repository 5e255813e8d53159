"""Oracles and screening on a real model: does the far oracle win, and how well do estimates rank rules?

    python benchmarks/oracle.py --out oracle-out --device cuda --context 1024 --continuation 3072 --documents 12
    python benchmarks/oracle.py --out oracle-out --context 128 --continuation 64 --documents 8 --draws 1 --gates 1

Documents are written one by one (DOCUMENT.parquet) and not measured again; the report is report.md and report.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from forward_influence.analysis.statistics.agreement import agreement
from forward_influence.analysis.statistics.inference import paired
from forward_influence.cli.screen import as_frame
from forward_influence.data.cutting import prepare
from forward_influence.data.documents import load_documents, sample_documents
from forward_influence.influence.ablation import removal
from forward_influence.influence.measure import measure_ablations
from forward_influence.measurement.request import Request
from forward_influence.measurement.screening import Way, screen_document
from forward_influence.models.loading import load_model
from forward_influence.models.resolving import load_tokenizer, resolve_spec
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.recorder import record
from forward_influence.utils.distances import zones
from forward_influence.utils.threads import start_anew

RULES = [
    "attention", "attention:per=token", "h2o", "h2o:per=token", "tova", "knorm", "keydiff", "expected-attention",
    "expected-attention:per=token", "entropy", "entropy:alignment=next", "surprisal", "infokv", "recent", "random",
    "random:per=token",
]  # fmt: skip
ORACLES = ["oracle:near", "oracle:far", "oracle:far,per=token"]
FISHER = ["oracle:far,by=fisher", "oracle:far,by=fisher,per=token"]


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    spec = resolve_spec(options.model)
    model = load_model(spec, device=options.device)
    oracles = ORACLES + [f"{rule},samples={options.oracle_samples}" for rule in FISHER]
    ways = ways_of(options)
    request = Request(
        selectors=tuple(RULES + oracles), budgets=(options.budget,), context=options.context,
        continuation=options.continuation, draws=options.draws,
    )  # fmt: skip
    ordered = sample_documents(load_documents(["sotu"]), None, 0)
    cut = prepare(ordered, load_tokenizer(spec), options.context, options.continuation, 1, options.documents).documents
    begun = time.monotonic()
    for i, document in enumerate(cut):
        path = options.out / f"document-{i:02d}.parquet"
        if path.exists() or time.monotonic() - begun > options.seconds:
            continue
        started = time.perf_counter()
        found, seconds = screen_document(model, document, request, ways, exact=True)
        frame = as_frame(found)
        frame["gradient_seconds"] = frame["by"].map(seconds)
        if i < options.leave_one_out:
            calibration(model, document, request, options).to_parquet(options.out / f"calibration-{i:02d}.parquet")
        frame.to_parquet(path)
        print(f"{document.document.name}: {time.perf_counter() - started:.1f} s", flush=True)
    report(options)


def ways_of(options: argparse.Namespace) -> list[Way]:
    """Closing with each number of gates, and fisher."""
    return [*(Way("closing", count) for count in options.gates), Way("fisher", options.samples)]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("oracle-out"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--continuation", type=int, default=512)
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--draws", type=int, default=2, help="of random rules")
    parser.add_argument("--gates", type=int, nargs="+", default=[1, 4], help="gate values of the closing estimates")
    parser.add_argument("--samples", type=int, default=16, help="label samples of the fisher estimates")
    parser.add_argument("--oracle-samples", type=int, default=8)
    parser.add_argument("--leave-one-out", type=int, default=0, help="calibrate on so many documents")
    parser.add_argument("--tokens", type=int, default=64, help="removed one by one, on each of these")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further document after so long")
    return parser.parse_args()


def calibration(model: object, document: object, request: Request, options: argparse.Namespace) -> pd.DataFrame:
    """Exact leave-one-out of some tokens beside its estimate, by zone: 128 + 256 tokens."""
    n, m = 128, 256
    tokens = document.segments[0][: n + m]
    trace = record(model, tokens[:n], span=n + m)
    ends = zones(m)
    some = range(4, min(n, 4 + options.tokens))
    masks = [(torch.arange(n) == token).expand(trace.shape) for token in some]
    ablations = [removal(trace, Selection(mask.to(model.device), trace.layers), "drop", m) for mask in masks]
    _, found = measure_ablations(model, trace, tokens[n:], ablations)
    rows = []
    for way in ways_of(options):
        gradients = way.gradients(model, trace, tokens[n:], ends, 0)
        for name, (low, high) in ends.items():
            for token, mask, influence in zip(some, masks, found, strict=True):
                estimate = float(way.estimates(gradients[name], mask, high - low).mean())
                exact = float(influence.kl[low:high].double().mean())
                about = {"way": way.words, "bin": name, "token": token}
                rows.append({**about, "estimate": estimate, "exact": exact})
    return pd.DataFrame(rows)


def report(options: argparse.Namespace) -> None:
    """Tables of everything measured so far."""
    frame = pd.concat([pd.read_parquet(p) for p in sorted(options.out.glob("document-*.parquet"))])
    frame["way"] = frame["by"] + ", " + frame["estimates"].map(len).astype(str)
    rules = frame[~frame["selector"].str.startswith("oracle")]
    mean = frame.groupby(["document", "selector", "bin"])["exact"].mean().unstack("bin")
    lines = [f"{frame['document'].nunique()} documents, {options.context} + {options.continuation} tokens, "]
    lines[0] += f"budget {options.budget}, torch {torch.__version__}\n"
    values = np.exp(np.log(mean).groupby(level="selector").mean())[["near", "middle", "far"]]
    lines.append("Exact influence (geometric means, nats):\n\n" + values.sort_values("far").to_string() + "\n")
    comparisons = {}
    far = mean["far"].unstack("selector")
    for oracle in [name for name in far if name.startswith("oracle:far")]:
        for rule in [name for name in far if not name.startswith("oracle")]:
            out = paired(far[oracle].to_numpy(), far[rule].to_numpy())
            comparisons[f"{oracle} / {rule}"] = [float(out.ratio), float(out.low), float(out.high)]
    rows = pd.DataFrame(comparisons, index=["ratio", "low", "high"]).T
    lines.append("Far influence, far oracle over each rule (95% intervals):\n\n" + rows.to_string() + "\n")
    ranks = pd.concat(
        [
            agreement(part, (1, 2, 4, 8, 16, 32, 64) if way.startswith("fisher") else (len(part["estimates"].iloc[0]),))
            .assign(way=way.split(",")[0])
            .rename(columns={"samples": "count"})
            for way, part in rules.groupby("way", sort=False)
        ]
    )
    lines.append("Rank correlation of estimates with exact values:\n\n" + ranks.to_string(index=False) + "\n")
    sizes = rules.assign(size=np.log(rules["estimate"].clip(lower=1e-12) / rules["exact"]))
    sizes = np.exp(sizes.groupby(["way", "bin"], sort=False)["size"].median())
    lines.append("Estimate over exact value, median:\n\n" + sizes.unstack("bin").to_string() + "\n")
    each, more = frame["exact_seconds"].mean(), frame["seconds"].mean()
    spent = frame.groupby(["document", "by"])["gradient_seconds"].first().groupby(level="by").mean()
    for by, seconds in spent.items():
        lines.append(f"Gradients {by}, all counts: {seconds:.1f} s a document.")
    lines.append(f"One more rule: {more * 1e3:.2f} ms estimated, {each:.2f} s measured ({each / more:,.0f} times).\n")
    parts = sorted(options.out.glob("calibration-*.parquet"))
    if parts:
        loo = pd.concat([pd.read_parquet(p).assign(document=p.stem) for p in parts])
        for (way, name), part in loo.groupby(["way", "bin"], sort=False):
            rank = spearmanr(part["estimate"], part["exact"]).statistic
            ratio = float(np.median(part["estimate"] / part["exact"]))
            lines.append(
                f"Leave-one-out, {way}, {name}: rank correlation {rank:.3f}, median estimate/exact {ratio:.3f}"
            )
    text = "\n".join(lines)
    (options.out / "report.md").write_text(text + "\n")
    content = {"comparisons": comparisons, "agreement": ranks.to_dict("records"), "exact": values.to_dict()}
    (options.out / "report.json").write_text(json.dumps(content, indent=1))
    print(text)


if __name__ == "__main__":
    start_anew()
    main()

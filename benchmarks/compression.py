"""What compressing costs and frees: memory, the prefill of InfoKV over attention's, and the speed of decoding.

    python benchmarks/compression.py                      # all three, SmolLM2-135M
    python benchmarks/compression.py --part prefill --repeats 5
    python benchmarks/compression.py --device cuda --dtype bfloat16

What is compared alternates in one process; medians of the ratios of neighbours are printed, all runs are appended to
benchmarks/results/compression.json. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from common import load, machine, remember, seconds
from torch import Tensor

from forward_influence.compression import Compressor, compress, make_compressor
from forward_influence.instrument.backbone import backbone
from forward_influence.instrument.forward import run
from forward_influence.utils.threads import start_anew

PARTS = ("memory", "prefill", "decode")


def prefill(model: Any, tokens: Tensor, compressor: Compressor) -> dict[str, float]:
    """Seconds of a prompt's pass with its compression, and of the head in it."""
    stats: list[Any] = []

    def once() -> None:
        with torch.no_grad(), compress(model, compressor) as cache:
            run(backbone(model.model), tokens[None].to(model.device), cache)
            stats.append(cache.stats)

    taken = seconds(model.device, once)
    found = stats[0]
    return {"seconds": taken, "head": found.head_seconds, "scoring": found.scoring_seconds}


def measure_prefill(model: Any, tokens: Tensor, repeats: int) -> dict[str, Any]:
    """InfoKV over the attention compressor on the same prompt."""
    made = {name: make_compressor(name, "0.25") for name in ("attention", "infokv", "full")}
    for compressor in made.values():  # once for warmth
        prefill(model, tokens[:512], compressor)
    pairs = []
    for i in range(repeats):
        order = list(made) if i % 2 == 0 else list(made)[::-1]
        found = {name: prefill(model, tokens, made[name]) for name in order}
        rest = found["infokv"]["seconds"] - found["infokv"]["head"]
        pairs.append({**found, "rest_over_attention": rest / found["attention"]["seconds"]})
    return {
        "tokens": len(tokens),
        "runs": pairs,
        "rest_over_attention": statistics.median(p["rest_over_attention"] for p in pairs),
        "head_share_of_attention": statistics.median(p["infokv"]["head"] / p["attention"]["seconds"] for p in pairs),
    }


def decoding(model: Any, tokens: Tensor, compressor: Compressor, new: int) -> float:
    """Seconds of `new` single-token passes after a prompt."""
    with torch.no_grad(), compress(model, compressor) as cache:
        inner = backbone(model.model)
        run(inner, tokens[None].to(model.device), cache)
        token = tokens[-1:][None].to(model.device)
        run(inner, token, cache)

        def steps() -> None:
            for _ in range(new):
                model.anatomy.head(run(inner, token, cache)[0][0])

        return seconds(model.device, steps)


def measure_decoding(model: Any, tokens: Tensor, repeats: int, new: int) -> dict[str, Any]:
    """Decoding with a quarter of the cache over decoding with all of it."""
    made = {
        "full": make_compressor("full"),
        "infokv": make_compressor("infokv", "0.25"),
        "infokv, every 64": make_compressor("infokv", "0.25", every=64),
    }
    pairs = []
    for i in range(repeats):
        order = list(made) if i % 2 == 0 else list(made)[::-1]
        pairs.append({name: new / decoding(model, tokens, made[name], new) for name in order})
    speedup = {n: statistics.median(p[n] / p["full"] for p in pairs) for n in made if n != "full"}
    return {"tokens": len(tokens), "new": new, "tokens_per_second": pairs, "over_full": speedup}


def measure_memory(model: Any, tokens: Tensor) -> dict[str, Any]:
    """Bytes of the tensors that hold keys and values, after a prompt."""
    with torch.no_grad(), compress(model, "infokv", budget=0.25) as cache:
        run(backbone(model.model), tokens[None].to(model.device), cache)
        stats = cache.stats
        # of the storages themselves, in case a view kept more alive than it shows
        stores = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in _stores(cache))}
    held = sum(stores.values())
    return {
        "tokens": len(tokens),
        "bytes": held,
        "full_bytes": stats.full_bytes,
        "share": held / stats.full_bytes,
        "held": sorted(set(stats.held.flatten().tolist())),
    }


def _stores(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model, or random:LAYERSxHIDDENxVOCABULARY")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--part", choices=PARTS, default=None)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--memory-prompt", type=int, default=6000)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model, tokens = load(options.model, options.device, options.dtype, max(options.prompt, options.memory_prompt))
    found: dict[str, Any] = {"model": options.model, "dtype": str(model.dtype), **machine(model.device)}
    if options.part in (None, "memory"):
        found["memory"] = measure_memory(model, tokens[: options.memory_prompt])
    if options.part in (None, "prefill"):
        found["prefill"] = measure_prefill(model, tokens[: options.prompt], options.repeats)
    if options.part in (None, "decode"):
        found["decode"] = measure_decoding(model, tokens[: options.prompt], options.repeats, options.new)
    remember("compression", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    start_anew()
    main()

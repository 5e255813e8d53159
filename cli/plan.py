"""`plan`: what a measurement will cost, before any weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.utils.defaults import CHUNK

if TYPE_CHECKING:
    from forward_influence.measurement.costs import Plan
    from forward_influence.models.loading import Resolved
    from forward_influence.models.sizes import Sizes


#: Shapes of models that people plan for, as their own config.json gives them (hub: meta-llama).
SHAPES: dict[str, dict[str, int]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
}


def plan_command(
    model: Annotated[
        str, typer.Option(help="As of `measure`, the config.json of a model, or llama-3.1-8b, which needs no network.")
    ] = "smollm2-135m",
    documents: Annotated[int, typer.Option(help="How many documents.", min=1)] = 24,
    selector: Annotated[list[str] | None, typer.Option(help="Rules, as of `measure`.", show_default=False)] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Budgets, as of `measure`.", show_default=False)] = None,
    match_held: Annotated[list[int] | None, typer.Option(help="As of `measure`.", show_default=False)] = None,
    context: Annotated[int, typer.Option(help="Context tokens.")] = 1024,
    continuation: Annotated[int, typer.Option(help="Continuation tokens.")] = 3072,
    segments: Annotated[int, typer.Option(help="Context/continuation pairs per document.")] = 1,
    effect: Annotated[str, typer.Option(help="total, direct or both.")] = "total",
    mode: Annotated[str, typer.Option(help="As of `measure`.")] = "drop",
    continuation_from: Annotated[str, typer.Option(help="As of `measure`.")] = "text",
    positions_per_bin: Annotated[int | None, typer.Option(help="As of `measure`.", show_default="all")] = None,
    bin_width: Annotated[int, typer.Option(help="As of `measure`.")] = 128,
    layers: Annotated[str | None, typer.Option(help="As of `measure`.", show_default="all full ones")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="As of `measure`.")] = False,
    compressor: Annotated[list[str] | None, typer.Option(help="As of `measure`.", show_default=False)] = None,
    every: Annotated[int | None, typer.Option(help="As of `measure`.", show_default=False)] = None,
    draws: Annotated[int, typer.Option(help="Draws of random rules.")] = 5,
    chunk: Annotated[int, typer.Option(help="Tokens per forward pass.", min=1)] = CHUNK,
    dtype: Annotated[str, typer.Option(help="As of `measure`.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda: what the memory is predicted for.")] = "auto",
    tflops: Annotated[
        float | None, typer.Option(help="10^12 operations per second of one worker.", show_default="measured here")
    ] = None,
    workers: Annotated[int, typer.Option(help="Workers that share the documents.", min=1)] = 1,
) -> None:
    """Predict tokens, operations, memory and hours of a measurement from the model's configuration alone."""
    from forward_influence.cli.measure import DEFAULT_RULES
    from forward_influence.errors import UsageError
    from forward_influence.instrument.architecture import refuse_unfit_caches
    from forward_influence.measurement.costs import counted, plan
    from forward_influence.measurement.request import Request
    from forward_influence.models.loading import choose_dtype
    from forward_influence.models.sizes import Sizes
    from forward_influence.utils.ranges import whole_numbers

    if tflops is not None and not 0 < tflops < float("inf"):
        raise UsageError(f"--tflops {tflops} is no throughput; give 300 for an H100 in bfloat16, say")
    request = Request(
        selectors=tuple(selector or ([] if compressor else DEFAULT_RULES)),
        budgets=tuple(budget) if budget else Request.budgets,
        context=context,
        continuation=continuation,
        segments=segments,
        effect=effect,
        draws=draws,
        mode=mode,
        continuation_from=continuation_from,
        positions_per_bin=positions_per_bin,
        bin_width=bin_width,
        layers=whole_numbers(layers, "--layers"),
        per_layer=per_layer,
        compressors=tuple(compressor or ()),
        every=every,
        match_held=tuple(match_held or ()),
    )
    accelerated, itemsize = _accelerated(device), choose_dtype(dtype).itemsize
    resolved = _resolved(model)
    request.check_positions(resolved.positions, model)
    refuse_unfit_caches(resolved.spec, resolved.config.get_text_config(decoder=True))
    sizes = counted(Sizes.of(resolved.config, itemsize, accelerated), resolved.config)
    throughput = tflops * 1e12 if tflops is not None else _measured(sizes)
    found = plan(sizes, request, documents, chunk=chunk, throughput=throughput, workers=workers)
    _show(found, throughput, workers, tflops is None)


def _accelerated(device: str) -> bool:
    """Whether a device is no processor; an accelerator need not be here.

    Raises:
        UsageError: there is no such device.
    """
    from forward_influence.models.loading import choose_device

    return bool(re.fullmatch(r"(cuda|mps)(:\d+)?", device)) or choose_device(device).type != "cpu"


def _resolved(model: str) -> Resolved:
    """What --model means.

    Raises:
        UsageError: its configuration cannot be read, or it is no causal language model.
    """
    from transformers import AutoConfig, LlamaConfig

    from forward_influence.errors import UsageError
    from forward_influence.models.loading import Resolved, resolve_spec

    if model in SHAPES:
        return Resolved(model, "named", model, LlamaConfig(**SHAPES[model]), {})
    path = Path(model)
    if path.name == "config.json" and path.is_file():
        return resolve_spec(str(path.absolute().parent))
    if not model.endswith("config.json"):
        return resolve_spec(model)
    try:
        return Resolved(model, "folder", model, AutoConfig.from_pretrained(model), {})
    except Exception as error:  # transformers raises whatever its readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{model} is no readable configuration ({reason})") from error


def _measured(sizes: Sizes) -> float:
    """Operations per second of matrix products of the model's shapes here, in a second or two."""
    import time

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[sizes.itemsize]
    rows = torch.randn(512, sizes.hidden, dtype=kind, device=device)
    up = torch.randn(sizes.hidden, sizes.intermediate, dtype=kind, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(20):
            product = rows @ up
        float(product[0, 0])  # waits for the device
        best = max(best, 20 * 2.0 * 512 * up.numel() / (time.perf_counter() - started))
    return _SUSTAINED * best


#: A whole model reaches so much of what its matrix products reach by themselves.
_SUSTAINED = 0.7


def _show(found: Plan, throughput: float, workers: int, here: bool) -> None:
    lines = [
        ("documents", f"{found.documents:,}, {found.conditions} conditions each"),
        ("tokens", f"{found.tokens:,}"),
        ("operations", f"{found.operations:.3g}"),
        ("model", f"{found.model_bytes / 1e9:,.2f} GB"),
        ("memory above it", f"{found.memory.total / 1e9:,.2f} GB ({found.memory.described()})"),
        ("throughput", f"{throughput / 1e12:,.3g} TFLOPS a worker, {'measured here' if here else 'as given'}"),
    ]
    if found.hours is not None:
        minutes = found.hours * 60
        time = f"{found.hours:,.1f} hours" if found.hours >= 2 else f"{minutes:,.1f} minutes"
        lines.append(("time", f"{time} on {workers} worker{'s' if workers > 1 else ''}"))
    for name, value in lines:
        typer.echo(f"{name:<16} {value}")

"""`plan`: what a measurement will cost, before any weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from forward_influence.memory import Sizes
    from forward_influence.plan import Plan


def plan_command(
    model: Annotated[str, typer.Option(help="As of `measure`, or the config.json of a model.")] = "smollm2-135m",
    documents: Annotated[int, typer.Option(help="How many documents.", min=1)] = 24,
    selector: Annotated[list[str] | None, typer.Option(help="Rules, as of `measure`.", show_default=False)] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Budgets, as of `measure`.", show_default=False)] = None,
    context: Annotated[int, typer.Option(help="Context tokens.")] = 1024,
    continuation: Annotated[int, typer.Option(help="Continuation tokens.")] = 3072,
    segments: Annotated[int, typer.Option(help="Context/continuation pairs per document.")] = 1,
    effect: Annotated[str, typer.Option(help="total, direct or both.")] = "total",
    draws: Annotated[int, typer.Option(help="Draws of random rules.")] = 5,
    chunk: Annotated[int, typer.Option(help="Tokens per forward pass.", min=1)] = 512,
    dtype: Annotated[str, typer.Option(help="As of `measure`.")] = "auto",
    tflops: Annotated[
        float | None, typer.Option(help="10^12 operations per second of one worker.", show_default="measured here")
    ] = None,
    workers: Annotated[int, typer.Option(help="Workers that share the documents.", min=1)] = 1,
) -> None:
    """Predict tokens, operations, memory and hours of a measurement from the model's configuration alone."""
    from forward_influence.cli.measure import DEFAULT_RULES
    from forward_influence.errors import UsageError
    from forward_influence.memory import Sizes
    from forward_influence.models import choose_dtype
    from forward_influence.plan import plan
    from forward_influence.request import Request

    if tflops is not None and not 0 < tflops < float("inf"):
        raise UsageError(f"--tflops {tflops} is no throughput; give 300 for an H100 in bfloat16, say")
    request = Request(
        selectors=tuple(selector or DEFAULT_RULES),
        budgets=tuple(budget or ["0.2"]),
        context=context,
        continuation=continuation,
        segments=segments,
        effect=effect,
        draws=draws,
    )
    sizes = Sizes.of(_configuration(model), choose_dtype(dtype).itemsize)
    throughput = tflops * 1e12 if tflops is not None else _measured(sizes)
    found = plan(sizes, request, documents, chunk=chunk, throughput=throughput, workers=workers)
    _show(found, throughput, workers, tflops is None)


def _configuration(model: str) -> object:
    from transformers import AutoConfig

    from forward_influence.errors import UsageError
    from forward_influence.models import resolve_spec

    if model.endswith("config.json"):
        try:
            return AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UsageError(f"{model} is no readable configuration ({str(error).splitlines()[0]})") from error
    return resolve_spec(model).config


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

"""What a measurement comes to, in lines: what `plan` shows, and `measure --dry-run`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forward_influence.measurement.costs import Plan
    from forward_influence.measurement.request import Request
    from forward_influence.models.recipe import Recipe
    from forward_influence.models.resolving import Resolved
    from forward_influence.models.sizes import Sizes


@dataclass(frozen=True)
class Load:
    """How much is measured at once, and by how many.

    Attributes:
        documents: how many.
        chunk: tokens per forward pass.
        tflops: of one worker; None measures what this machine reaches.
        workers: that share the documents; 0 counts as 1.
    """

    documents: int
    chunk: int
    tflops: float | None = None
    workers: int = 1


def costs(resolved: Resolved, request: Request, recipe: Recipe, load: Load) -> list[str]:
    """What a measurement comes to, in lines.

    Raises:
        UsageError: the model cannot be measured so, or there is no such device.
    """
    found, throughput, states = _planned(resolved, request, recipe, load)
    return [*_lines(found, throughput, max(1, load.workers), load.tflops is None), *_states(states)]


def predicted(resolved: Resolved, request: Request, recipe: Recipe, load: Load) -> dict[str, Any]:
    """The same as values, fit for JSON: `Plan`'s, the peak of memory in bytes, and the throughput of a worker.

    Raises:
        UsageError: as `costs`.
    """
    found, throughput, states = _planned(resolved, request, recipe, load)
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    more = {"memory_bytes": values.pop("memory").total, "throughput": throughput, "workers": max(1, load.workers)}
    return {**values, **more, "states": states or None}


def _planned(resolved: Resolved, request: Request, recipe: Recipe, load: Load) -> tuple[Plan, float, str]:
    """The plan, operations per second of a worker, and where else than in entries a token lives on."""
    from forward_influence.influence.refusals import check_model
    from forward_influence.instrument.architecture import refuse_unfit_caches
    from forward_influence.instrument.steps import Steps
    from forward_influence.measurement.costs import plan
    from forward_influence.models.holding import holding

    kinds = refuse_unfit_caches(resolved.spec, resolved.config.get_text_config(decoder=True))
    check_model(request.effects, request.needs, kinds, Steps())
    sizes = sizes_of(resolved, recipe)
    throughput = measured_throughput(sizes) if load.tflops is None else load.tflops * 1e12
    workers = max(1, load.workers)
    found = plan(sizes, request, load.documents, chunk=load.chunk, throughput=throughput, workers=workers)
    return found, throughput, holding(kinds)


def _states(words: str) -> list[str]:
    """Where else than in entries a token lives on, where there is such a place."""
    return [f"{'states':<16} {words}"] if words else []


def sizes_of(resolved: Resolved, recipe: Recipe) -> Sizes:
    """What a model's time and memory depend on.

    Raises:
        UsageError: it cannot be measured, or there is no such device.
    """
    from forward_influence.instrument.architecture import refuse_unfit_caches
    from forward_influence.measurement.costs import counted
    from forward_influence.models.devices import choose_dtype
    from forward_influence.models.sizes import Sizes

    accelerated, itemsize = _accelerated(recipe.device), choose_dtype(recipe.dtype).itemsize
    refuse_unfit_caches(resolved.spec, resolved.config.get_text_config(decoder=True))
    return counted(Sizes.of(resolved.config, itemsize, accelerated), resolved.config)


def _accelerated(device: str) -> bool:
    """Whether a device is no processor; an accelerator need not be here.

    Raises:
        UsageError: there is no such device.
    """
    from forward_influence.models.devices import choose_device

    return bool(re.fullmatch(r"(cuda|mps)(:\d+)?", device)) or choose_device(device).type != "cpu"


def measured_throughput(sizes: Sizes, seconds: float = 1.0) -> float:
    """Operations per second of matrix products of the model's shapes here, the fastest of those that fit in a time."""
    import time

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[sizes.itemsize]
    rows = torch.randn(512, sizes.hidden, dtype=kind, device=device)
    up = torch.randn(sizes.hidden, sizes.intermediate, dtype=kind, device=device)
    best, number, begun = 0.0, 1, time.perf_counter()
    while (started := time.perf_counter()) - begun < seconds:
        for _ in range(number):
            product = rows @ up
        float(product[0, 0])  # waits for the device
        took = time.perf_counter() - started
        best = max(best, number * 2.0 * 512 * up.numel() / took)
        number = number if took > seconds / 10 else 2 * number  # so that waiting counts for little
    return _SUSTAINED * best


#: A whole model reaches so much of what its matrix products reach by themselves.
_SUSTAINED = 0.7


def _lines(found: Plan, throughput: float, workers: int, here: bool) -> list[str]:
    lines = [
        ("documents", f"{found.documents:,}, {found.conditions} conditions each"),
        ("tokens", f"{found.tokens:,}"),
        ("operations", f"{found.operations:.3g}"),
        ("model", f"{found.model_bytes / 1e9:,.2f} GB"),
        ("memory above it", f"{found.memory.total / 1e9:,.2f} GB ({found.memory.described()})"),
        ("throughput", f"{throughput / 1e12:,.3g} TFLOPS a worker, {'measured here' if here else 'as given'}"),
    ]
    if found.hours is not None:
        lines.append(("time", f"{in_time(found.hours)} on {workers} worker{'s' if workers > 1 else ''}"))
    return [f"{name:<16} {value}" for name, value in lines]


def in_time(hours: float) -> str:
    """Hours, or minutes where they are few."""
    return f"{hours:,.1f} hours" if hours >= 2 else f"{hours * 60:,.1f} minutes"

"""`plan`: what a measurement will cost, before any weights are loaded; and how many documents it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.cli.defaults import only_compressors
from forward_influence.cli.options import Given, Only, configured
from forward_influence.cli.reading import Equal, Reading
from forward_influence.errors import UsageError
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, CLUSTER, HARDWARE, Configuration, described, option
from forward_influence.utils.defaults import CHUNK

if TYPE_CHECKING:
    from forward_influence.measurement.costs import Plan
    from forward_influence.measurement.request import Request
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


@described
@dataclass(frozen=True)
class Machine(Configuration):
    """What a measurement is planned for."""

    documents: int = option(24, "How many documents.", BASICS, least=1)
    chunk: int = option(CHUNK, "Tokens per forward pass.", HARDWARE, least=1)
    tflops: float | None = option(None, "10^12 operations per second of one worker.", HARDWARE, shown="measured here")
    workers: int = option(1, "Workers that share the documents.", CLUSTER, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tflops is not None and not 0 < self.tflops < float("inf"):
            raise UsageError(f"`tflops` {self.tflops} is no throughput; give 300 for an H100 in bfloat16, say")


@configured
def plan_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="With --detect: runs to learn from how much documents differ.", metavar="[RUN...]"),
    ] = None,
    *,
    recipe: Annotated[
        Recipe,
        Only(
            "model",
            "dtype",
            "device",
            model_help="As of `measure`, the config.json of a model, or llama-3.1-8b, which needs no network.",
            device_help="cpu or cuda: what the memory is predicted for.",
        ),
    ],
    machine: Machine,
    choices: Choices,
    reading: Annotated[Reading, Only("baseline", "cluster")],
    equal: Equal,
    given: Given,
    detect: Annotated[
        float | None,
        typer.Option(
            help="How many documents find this ratio to the baseline, 1.2 say, with 80% power.", metavar="RATIO"
        ),
    ] = None,
) -> None:
    """Predict what a measurement costs, from the model's configuration; or how many documents it needs, from a run."""
    if runs or detect is not None:
        _refuse_what_says_nothing(runs, detect, given)
        from forward_influence.cli.sizing import show_sizes

        show_sizes(runs or [], detect or 0.0, reading, equal)
        return
    if misplaced := sorted(given.fields & _OF_RUNS):
        raise UsageError(f"`{misplaced[0]}` is about a run that is there; give one: plan RUN --detect 1.2")
    from forward_influence.measurement.request import Request

    request = Request(**vars(only_compressors(choices, given)))
    for line in costs(_resolved(recipe.model), request, recipe, machine):
        typer.echo(line)


#: What is said of a run that is there; everything else, of a measurement to come.
_OF_RUNS = frozenset(("baseline", "cluster", "margin"))


def _refuse_what_says_nothing(runs: list[str] | None, detect: float | None, given: Given) -> None:
    """A run and the ratio to detect go together, and without what is said of a measurement to come.

    Raises:
        UsageError: naming what is missing, or too much.
    """
    if not runs:
        raise UsageError("--detect learns from a run how much documents differ; give its folder: plan RUN --detect 1.2")
    if detect is None:
        raise UsageError(f"plan {runs[0]} says how many documents find a ratio; say which, --detect 1.2 for example")
    if misplaced := sorted(given.fields - _OF_RUNS):
        raise UsageError(f"`{misplaced[0]}` is about a measurement to come; leave it out beside a run")


def costs(resolved: Resolved, request: Request, recipe: Recipe, machine: Machine) -> list[str]:
    """What a measurement comes to, in lines.

    Raises:
        UsageError: the model cannot be measured so, or there is no such device.
    """
    from forward_influence.instrument.architecture import refuse_unfit_caches
    from forward_influence.measurement.costs import counted, plan
    from forward_influence.models.loading import choose_dtype
    from forward_influence.models.sizes import Sizes

    accelerated, itemsize = _accelerated(recipe.device), choose_dtype(recipe.dtype).itemsize
    request.check_positions(resolved.positions, recipe.model)
    refuse_unfit_caches(resolved.spec, resolved.config.get_text_config(decoder=True))
    sizes = counted(Sizes.of(resolved.config, itemsize, accelerated), resolved.config)
    given = machine.tflops is not None
    throughput = machine.tflops * 1e12 if machine.tflops is not None else _measured(sizes)
    found = plan(sizes, request, machine.documents, chunk=machine.chunk, throughput=throughput, workers=machine.workers)
    return _lines(found, throughput, machine.workers, not given)


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
        minutes = found.hours * 60
        time = f"{found.hours:,.1f} hours" if found.hours >= 2 else f"{minutes:,.1f} minutes"
        lines.append(("time", f"{time} on {workers} worker{'s' if workers > 1 else ''}"))
    return [f"{name:<16} {value}" for name, value in lines]

"""`plan`: what a measurement will cost, before any weights are loaded; and how many documents it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.cli.costs import Load, costs, predicted
from forward_influence.cli.defaults import only_compressors
from forward_influence.cli.executing import Effort
from forward_influence.cli.measure import Result
from forward_influence.cli.options import AsJson, Given, Only, configured
from forward_influence.cli.reading import Equal, Reading
from forward_influence.cli.sizing import Sought, show_sizes
from forward_influence.cli.tables import as_json
from forward_influence.data.asked import Asked
from forward_influence.errors import UsageError
from forward_influence.execution.cluster import Cluster
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, HARDWARE, Configuration, described, option

if TYPE_CHECKING:
    from forward_influence.measurement.request import Request
    from forward_influence.models.resolving import Resolved


#: Documents that are planned for where none are named.
COUNT = 24
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

    count: int | None = option(
        None,
        "Plan for so many documents, without reading any.",
        BASICS,
        least=1,
        shown=f"as many as the documents come to; {COUNT} where none are named",
    )
    tflops: float | None = option(None, "10^12 operations per second of one worker.", HARDWARE, shown="measured here")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tflops is not None and not 0 < self.tflops < float("inf"):
            raise UsageError(f"`tflops` {self.tflops} is no throughput; give 300 for an H100 in bfloat16, say")


@configured(passes_over=(Recipe, Effort, Cluster, Result))
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
    documents: Annotated[Asked, Only(documents_shown="none")],
    machine: Machine,
    choices: Choices,
    effort: Annotated[Effort, Only("chunk")],
    workers: Annotated[
        Cluster, Only("workers", workers=1, workers_help="Workers that share the documents; 0 is taken as 1.")
    ],
    sought: Sought,
    reading: Annotated[Reading, Only("baseline", "cluster")],
    equal: Equal,
    given: Given,
    json: AsJson = False,
) -> None:
    """Predict what a measurement costs, from the model's configuration; or how many documents it needs, from a run.

    What `measure --dry-run` writes is planned with `--config FILE`.
    """
    if runs or sought.detect is not None:
        if json:
            raise UsageError("--json is of what a measurement costs; leave it out beside a run")
        show_sizes(*_sizing(runs, sought, given), reading, equal)
        return
    if misplaced := sorted(given.fields & _OF_RUNS):
        raise UsageError(f"`{misplaced[0]}` is about a run that is there; give one: plan RUN --detect 1.2")
    from forward_influence.measurement.request import Request

    request = Request(**vars(only_compressors(choices, given)))
    if request.spans is not None:
        raise UsageError("`measure_on` takes lengths from documents; ask `measure --dry-run`, which reads them")
    resolved = _resolved(recipe.model)
    request.check_positions(resolved.positions, recipe.model)
    count = _count(resolved, request, documents, machine, given)
    load = Load(count, effort.chunk, machine.tflops, workers.workers)
    if json:
        typer.echo(as_json(predicted(resolved, request, recipe, load)), nl=False)
        return
    for line in costs(resolved, request, recipe, load):
        typer.echo(line)


#: What is said of a run that is there; everything else, of a measurement to come.
_OF_RUNS = frozenset(("baseline", "cluster", "margin", "detect"))


def _sizing(runs: list[str] | None, sought: Sought, given: Given) -> tuple[list[str], float]:
    """A run and the ratio to detect, which go together, and without what is said of a measurement to come.

    Raises:
        UsageError: naming what is missing, or too much.
    """
    if not runs:
        raise UsageError("`detect` learns from a run how much documents differ; give its folder: plan RUN --detect 1.2")
    if sought.detect is None:
        raise UsageError(f"plan {runs[0]} says how many documents find a ratio; say which, --detect 1.2 for example")
    if misplaced := sorted(given.fields - _OF_RUNS):
        raise UsageError(f"`{misplaced[0]}` is about a measurement to come; leave it out beside a run")
    return runs, sought.detect


def _count(resolved: Resolved, request: Request, asked: Asked, machine: Machine, given: Given) -> int:
    """How many documents are planned for.


    Raises:
        UsageError: a number stands where documents are named, or the model has no tokenizer to cut them with.
    """
    if "documents" in given.fields:
        for spec in asked.documents:
            if spec.isdigit() and not Path(spec).exists():
                raise UsageError(f"`documents` {spec} is a number; to plan for so many documents give `count` {spec}")
    if machine.count is not None:
        return machine.count
    if not given.fields & {"documents", "sample"}:
        return COUNT if asked.max_documents is None else min(COUNT, asked.max_documents)
    if resolved.spec in SHAPES or resolved.spec.endswith("config.json"):
        raise UsageError(f"{resolved.spec} comes without a tokenizer to cut documents with; give their `count` instead")
    from forward_influence.cli.measuring import prepare_documents

    return len(prepare_documents(asked, request.seed, resolved, request).documents)


def _resolved(model: str) -> Resolved:
    """What --model means.

    Raises:
        UsageError: its configuration cannot be read, or it is no causal language model.
    """
    from transformers import AutoConfig, LlamaConfig

    from forward_influence.models.resolving import Resolved, resolve_spec

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

"""`--dry-run`: what would be done and what it costs, as comments of the YAML that `--config` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from forward_influence.cli import wording
from forward_influence.cli.costs import Load, costs, in_time, measured_throughput, sizes_of
from forward_influence.cli.experiment import written
from forward_influence.cli.measuring import prepare_documents
from forward_influence.utils.configuration import Configuration

if TYPE_CHECKING:
    from forward_influence.cli.executing import Loading
    from forward_influence.cli.generate import Generation
    from forward_influence.cli.measure import Result
    from forward_influence.compression.compressor import Compressor
    from forward_influence.data.asked import Asked
    from forward_influence.data.cutting import Prepared
    from forward_influence.evaluation.plan import Plan
    from forward_influence.execution.cluster import Cluster
    from forward_influence.measurement.request import Request
    from forward_influence.models.recipe import Recipe
    from forward_influence.models.resolving import Resolved
    from forward_influence.models.sizes import Sizes
    from forward_influence.storage.study_plan import StudyPlan


def show_evaluation(plan: Plan, recipe: Recipe, *asked: Configuration) -> None:
    """Print the plan of an evaluation and the file that it follows from; no weights are loaded.

    Args:
        asked: what was asked for beside the model.

    Raises:
        UsageError: it would be refused.
    """
    from forward_influence.evaluation.costs import evaluation_cost
    from forward_influence.evaluation.run import check_lengths
    from forward_influence.models.resolving import load_tokenizer
    from forward_influence.utils.tokenization import wants_chat

    resolved = recipe.resolved()
    wants_chat(load_tokenizer(resolved), plan.chat)
    check_lengths(plan, resolved.positions, resolved.spec)
    sizes = sizes_of(resolved, recipe)
    cost = evaluation_cost(sizes, plan)
    names = list(dict.fromkeys(contender.name for contender in plan.contenders))
    lines = [
        f"{'tasks':<16} {', '.join(task.spec for task in plan.parsed_tasks)}",
        f"{'compressors':<16} {', '.join(names)}",
        f"{'budgets':<16} {', '.join(plan.budgets) or ', '.join(f'{n} held' for n in plan.match_held)}",
        f"{'items':<16} {plan.items} of each task at {', '.join(map(str, plan.lengths))} tokens, question "
        f"{' and '.join(plan.protocols)}",
        f"{'answers':<16} {cost.answers:,}",
        *_spent(cost.tokens, cost.operations, sizes),
        f"{'caches':<16} at most {cost.cache_bytes / 1e6:,.1f} MB",
        *(f"{'remark':<16} {remark}" for remark in plan.remarks),
    ]
    show_plan("evaluate", lines, recipe, *asked)


def show_generation(
    prompts: Sequence[str],
    compressor: Compressor,
    resolved: Resolved,
    recipe: Recipe,
    asked: Generation,
    remark: str = "",
) -> None:
    """Print the plan of a generated text and the file that it follows from; no weights are loaded.

    Args:
        remark: what to know of the compressor and the prompts.

    Raises:
        UsageError: it would be refused.
    """
    from forward_influence.compression.costs import generation_cost
    from forward_influence.compression.generation import check_generation, prompt_tokens
    from forward_influence.models.resolving import load_tokenizer

    tokenizer = load_tokenizer(resolved)
    lengths = [len(prompt_tokens(tokenizer, prompt, asked.chat, asked.system)) for prompt in prompts]
    for length in lengths:
        check_generation(
            length, asked.max_new_tokens, asked.seed + asked.answers - 1, resolved.positions, resolved.spec
        )
    sizes = sizes_of(resolved, recipe)
    costs = [generation_cost(sizes, compressor, length, asked.max_new_tokens) for length in lengths]
    cost = max(costs, key=lambda one: one.tokens)
    several = f"{len(prompts)} prompts of at most " if len(prompts) > 1 else ""
    answers = f", {asked.answers} answers to each" if asked.answers > 1 else ""
    of_each = " each, at most" if len(prompts) * asked.answers > 1 else ""
    lines = [
        f"{'prompt':<16} {several}{max(lengths)} tokens{answers}; what was typed of it is not in the file",
        f"{'new tokens':<16} {asked.max_new_tokens} at most",
        f"{'compressor':<16} {compressor.name}, {cost.compressions} compressions",
        f"{'held':<16} {cost.held} of {cost.tokens} tokens per layer and head at the end",
        f"{'cache':<16} {cost.bytes / 1e6:,.1f} MB{of_each}; {cost.full_bytes / 1e6:,.1f} MB had it been full",
        *_spent(
            asked.answers * sum(one.tokens for one in costs),
            asked.answers * sum(one.operations for one in costs),
            sizes,
        ),
        *([f"{'remark':<16} {remark}"] if remark else []),
    ]
    show_plan("generate", lines, recipe, asked)


def _spent(tokens: int, operations: float, sizes: Sizes) -> list[str]:
    """What goes through a model, and how long that takes at least: tokens that come one by one take longer."""
    throughput = measured_throughput(sizes)
    return [
        f"{'tokens':<16} {tokens:,} at most",
        f"{'operations':<16} {operations:.3g} at most",
        f"{'model':<16} {sizes.model_bytes / 1e9:,.2f} GB",
        f"{'time':<16} {in_time(operations / throughput / 3600)} at {throughput / 1e12:,.3g} TFLOPS, measured here; "
        "tokens that come one by one take longer",
    ]


#: Names of documents that are written out.
_NAMED = 5


def show_measurement(
    request: Request, asked: Asked, loading: Loading, cluster: Cluster, result: Result, plan: StudyPlan | None = None
) -> None:
    """Print the plan of a measurement and the file that it follows from; no weights are loaded.

    Raises:
        UsageError: it would be refused, or --out holds another run.
    """
    from forward_influence.execution.run import Source, refuse_other_run, request_configuration
    from forward_influence.measurement.planned import check_plan

    resolved = loading.resolved()
    if request.spans is None:
        request.check_positions(resolved.positions, resolved.spec)
    prepared = prepare_documents(asked, request.seed, resolved, request)
    if plan is not None:
        check_plan(plan, request, len(prepared.documents))
    if result.out is not None:
        source = Source(asked.documents, asked.sample, asked.max_documents, plan=plan)
        refuse_other_run(result.out, request_configuration(resolved.spec, prepared.documents, request, source))
    load = Load(len(prepared.documents), loading.effort.chunk, None, cluster.workers)
    lines = [*_what(request, prepared), *costs(resolved, request.longest(prepared.documents), loading.recipe, load)]
    if request.spans is not None:
        lines.append(f"{'costs':<16} as if every document were as long as the longest")
    lines += [f"{'remark':<16} {remark}" for remark in request.remarks]
    lines += [f"{'plan':<16} {len(plan.questions)} questions, sha256 {plan.sha256[:16]}"] if plan is not None else []
    lines += [f"{'until':<16} it ends sooner, if intervals are narrow enough"] if result.until is not None else []
    show_plan("measure", lines, loading.recipe, asked, request, result, loading.effort, cluster)


def show_plan(command: str, lines: Iterable[str], *configurations: Configuration) -> None:
    """Print what a command would do, as comments, and the file of options that it follows from."""
    typer.echo(f"# What `forward-influence {command} --config FILE` does with this file:")
    for line in lines:
        typer.echo(f"#   {' '.join(wording.in_options(line).splitlines())}")
    typer.echo("")
    typer.echo(written(*configurations), nl=False)


def _what(request: Request, prepared: Prepared) -> list[str]:
    """Documents and conditions, by name."""
    names = [document.document.name for document in prepared.documents]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    segments = sum(len(document.segments) for document in prepared.documents)
    return [
        f"{'measured':<16} {', '.join(names[:_NAMED])}{more}",
        f"{'segments':<16} {segments} of {_lengths(request, prepared)} tokens",
        f"{'rules':<16} {', '.join(request.selectors) or 'none'}",
        *([f"{'compressors':<16} {', '.join(request.compressors)}"] if request.compressors else []),
        f"{'budgets':<16} {', '.join(request.budgets) or ', '.join(f'{n} held' for n in request.match_held)}",
    ]


def _lengths(request: Request, prepared: Prepared) -> str:
    """Context + continuation; where they differ between documents, from the shortest to the longest."""
    layouts = [document.layout for document in prepared.documents if document.layout is not None]
    if not layouts:
        return f"{request.context} + {request.continuation}"
    ends = [sorted(getattr(layout, name) for layout in layouts) for name in ("context", "count")]
    return " + ".join(f"{low} to {high}" for low, *_, high in (values * 2 for values in ends)) + " measured"

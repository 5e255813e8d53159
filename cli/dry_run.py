"""`measure --dry-run`: what would be measured and what it costs, as comments of the YAML that `--config` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from forward_influence.cli.experiment import written
from forward_influence.cli.measuring import prepare_documents
from forward_influence.cli.plan import Machine, costs

if TYPE_CHECKING:
    from forward_influence.cli.executing import Cluster, Loading
    from forward_influence.cli.measure import Result
    from forward_influence.data.asked import Asked
    from forward_influence.data.cutting import Prepared
    from forward_influence.measurement.request import Request
    from forward_influence.storage.study_plan import StudyPlan

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
    request.check_positions(resolved.positions, resolved.spec)
    prepared = prepare_documents(asked, request.seed, resolved, request)
    if plan is not None:
        check_plan(plan, request, len(prepared.documents))
    if result.out is not None:
        source = Source(asked.documents, asked.sample, asked.max_documents, plan=plan)
        refuse_other_run(result.out, request_configuration(resolved.spec, prepared.documents, request, source))
    machine = Machine(len(prepared.documents), loading.effort.chunk, None, max(1, cluster.workers))
    lines = [*_what(request, prepared), *costs(resolved, request, loading.recipe, machine)]
    lines += [f"{'remark':<16} {remark}" for remark in request.remarks]
    lines += [f"{'plan':<16} {len(plan.questions)} questions, sha256 {plan.sha256[:16]}"] if plan is not None else []
    lines += [f"{'until':<16} it ends sooner, if intervals are narrow enough"] if result.until is not None else []
    typer.echo("# What `forward-influence measure --config FILE` measures with this file:")
    for line in lines:
        typer.echo(f"#   {' '.join(line.splitlines())}")
    typer.echo("")
    typer.echo(written(loading.recipe, asked, request, result, loading.effort, cluster), nl=False)


def _what(request: Request, prepared: Prepared) -> list[str]:
    """Documents and conditions, by name."""
    names = [document.document.name for document in prepared.documents]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    segments = sum(len(document.segments) for document in prepared.documents)
    return [
        f"{'measured':<16} {', '.join(names[:_NAMED])}{more}",
        f"{'segments':<16} {segments} of {request.context} + {request.continuation} tokens",
        f"{'rules':<16} {', '.join(request.selectors) or 'none'}",
        *([f"{'compressors':<16} {', '.join(request.compressors)}"] if request.compressors else []),
        f"{'budgets':<16} {', '.join(request.budgets) or ', '.join(f'{n} held' for n in request.match_held)}",
    ]

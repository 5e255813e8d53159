"""`measure`: documents x rules x budgets -> a run folder, and the table of it."""

from __future__ import annotations

from dataclasses import dataclass

from forward_influence.cli.defaults import only_compressors
from forward_influence.cli.executing import Effort, Loading
from forward_influence.cli.options import AsJson, DryRun, Given, configured
from forward_influence.cli.progress import waiting
from forward_influence.data.asked import Asked
from forward_influence.errors import UsageError
from forward_influence.execution.cluster import Cluster
from forward_influence.measurement.choices import Choices
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, Configuration, described, option


@described
@dataclass(frozen=True)
class Result(Configuration):
    """Where results go, and when there are enough of them."""

    out: str | None = option(
        None, "Run folder, or an address: s3://bucket/run.", BASICS, shown="runs/, named after the configuration"
    )
    add: str | None = option(
        None,
        "Add rules to this run, under its conditions; costs one continuation each.",
        BASICS,
        metavar="RUN",
        shown="a run of its own",
    )
    until: float | None = option(
        None,
        "Stop when every rule's far interval is narrower than this: 0.1 for +-10%.",
        BASICS,
        metavar="WIDTH",
        shown="all documents",
    )
    plan: str | None = option(
        None,
        "A YAML file of the questions that the run is to answer, made before it.",
        BASICS,
        metavar="FILE",
        shown="none, all is exploratory",
    )


@configured
def measure_command(
    recipe: Recipe,
    documents: Asked,
    choices: Choices,
    result: Result,
    effort: Effort,
    cluster: Cluster,
    given: Given,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Measure how far each rule's tokens reach: the shift of future predictions when they leave the cache."""
    from forward_influence.cli.measuring import add_rules, measure_documents, planned

    with waiting("starting"):
        from forward_influence.measurement.request import Request

    loading = Loading(recipe, None if dry_run else cluster.made(recipe), effort)
    if result.add is not None:
        _refuse_beside_add(given, dry_run)
        selectors = choices.selectors if "selectors" in given.fields else ()
        add_rules(result.add, list(selectors), list(choices.compressors), loading, json)
        return
    request = Request(**vars(only_compressors(choices, given)))
    plan, documents = planned(result.plan, documents, result.until)
    if dry_run:
        from forward_influence.cli.dry_run import show_measurement

        show_measurement(request, documents, loading, cluster, result, plan)
    else:
        measure_documents(request, documents, result.out, result.until, loading, given, plan, json)


#: What may stand beside --add; everything else is the run's own.
_BESIDE_ADD = {
    "add",
    "selectors",
    "compressors",
    "memory_limit",
    "trace_cache",
    "executor",
    "address",
    "workers",
    "gpus_per_worker",
    "device",
    "device_map",
    "revision",
    "trust_remote_code",
}


def _refuse_beside_add(given: Given, dry_run: bool) -> None:
    """Options that a run has decided already are not silently left aside."""
    if dry_run:
        raise UsageError("`dry_run` tells what a new run costs; leave it out beside `add`")
    for name in sorted(given.fields - _BESIDE_ADD):
        raise UsageError(f"`{name}` is the run's own; leave it out beside `add`")

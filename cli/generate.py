"""`generate`: text from a model whose cache compresses itself, and what the cache came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forward_influence.cli.executing import load_shown
from forward_influence.cli.options import AsJson, DryRun, Given, configured
from forward_influence.cli.output import standard_input
from forward_influence.cli.tables import as_json
from forward_influence.cli.wording import in_options
from forward_influence.errors import UsageError
from forward_influence.models.recipe import Recipe
from forward_influence.utils.configuration import BASICS, BUDGETS, Configuration, described, option

if TYPE_CHECKING:
    from forward_influence.compression.generation import Generated


@described
@dataclass(frozen=True)
class Generation(Configuration):
    """What is generated, and how the cache compresses itself meanwhile."""

    file: Path | None = option(None, "A text file that comes before the prompt, or before each.", BASICS, shown="none")
    prompts: tuple[str, ...] = option((), "Another prompt; repeatable.", BASICS, typed="prompt", shown="none")
    prompt_file: Path | None = option(None, "A text file with a prompt in each line.", BASICS, shown="none")
    answers: int = option(1, "Answers to each prompt, at a temperature above 0.", BASICS, least=1)
    batch: int = option(8, "Of several answers, how many are generated side by side.", BASICS, least=1)
    compressor: str = option("infokv", "infokv, snapkv, h2o, rpc, full, ... or any rule: NAME[:key=value,...].", BASICS)
    max_new_tokens: int = option(512, "Most tokens to generate.", BASICS)
    temperature: float = option(0.0, "0 is greedy.", BASICS)
    top_p: float = option(1.0, "Of sampling.", BASICS)
    seed: int = option(0, "Of sampling and of random compressors; one more for each further answer.", BASICS)
    chat: bool | None = option(None, "Use the chat template.", BASICS, shown="where there is one")
    system: str | None = option(None, "A system message.", BASICS, shown="none")
    budget: str = option(
        "0.25", "How much is kept per layer and head: a fraction of the tokens seen (0.25) or a count (200).", BUDGETS
    )
    every: int | None = option(None, "Compress each time that so many tokens came.", BUDGETS, shown="after the prompt")
    prefill: bool | None = option(
        None, "Compress after the prompt.", BUDGETS, shown="yes; a prompt of which the budget leaves no choice is kept"
    )
    scheme: str | None = option(
        None,
        "How the budget is divided: uniform, pyramid, layers, heads, recent, rule.",
        BUDGETS,
        shown="the compressor's own",
    )
    keep_prompt: bool | None = option(
        None,
        "Keep the prompt whole.",
        BUDGETS,
        off="compress_prompt",
        shown="the compressor's own; a short one is kept",
    )
    protect_last: str | None = option(
        None,
        "Last tokens that are always kept: a count, or a share of what is kept (0.25); at most half of it.",
        BUDGETS,
        shown="64 or the rule's window",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` {self.top_p} is no share; give more than 0 and at most 1")


@configured
def generate_command(
    asked: Generation,
    recipe: Recipe,
    given: Given,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Generate with a compressed cache: the text as it grows, then what is held and what that took.

    Several prompts, or answers to one, are generated side by side, each with a cache of its own.
    """
    from forward_influence.compression import make_compressor
    from forward_influence.compression.generation import generate, generate_all, prompt_tokens
    from forward_influence.compression.short_prompts import sparing
    from forward_influence.measurement.request import check_temperature
    from forward_influence.models.resolving import load_tokenizer

    texts = _texts(prompt, asked)
    made = make_compressor(
        asked.compressor,
        asked.budget,
        every=asked.every,
        prefill=asked.prefill is not False,
        scheme=asked.scheme,
        keep_prompt=asked.keep_prompt,
        protect_last=asked.protect_last,
    )
    check_temperature(asked.temperature)
    resolved = recipe.resolved()
    tokenizer = load_tokenizer(resolved)
    lengths = [len(prompt_tokens(tokenizer, text, asked.chat, asked.system)) for text in texts]
    made, remark = sparing(made, lengths, asked=asked.prefill is not None or asked.keep_prompt is not None)
    if dry_run:
        from forward_influence.cli.dry_run import show_generation

        show_generation(texts, made, resolved, recipe, asked, remark)
        return
    loaded = load_shown(recipe, resolved)
    settings: dict[str, Any] = {
        "max_new_tokens": asked.max_new_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
        "chat": asked.chat,
        "system": asked.system,
    }
    if json:
        made_all = generate_all(loaded, texts, made, answers=asked.answers, batch=asked.batch, **settings)
        remarks = [in_options(remark)] if remark else []
        typer.echo(as_json([_values(found, remarks) for found in made_all]), nl=False)
        return
    if len(texts) * asked.answers == 1:
        found = generate(loaded, texts[0], made, show=_show, **settings)
        typer.echo("")
        for line in _report(found):
            typer.echo(line, err=True)
        _note(remark)
        return

    def done(place: int, found: Generated) -> None:
        which = f"prompt {place // asked.answers + 1} of {len(texts)}"
        if asked.answers > 1:
            which += f", answer {place % asked.answers + 1} of {asked.answers}"
        typer.echo(f"=== {which}")
        _show(found.text)
        typer.echo("")
        for line in _report(found):
            typer.echo(line, err=True)

    generate_all(loaded, texts, made, answers=asked.answers, batch=asked.batch, done=done, **settings)
    _note(remark)


def _values(found: Generated, remarks: list[str]) -> dict[str, Any]:
    """A text and what it took, fit for JSON; entries are of each layer and kv head."""
    stats = found.stats
    return {
        "text": found.text,
        "prompt_tokens": found.prompt_tokens,
        "new_tokens": found.new_tokens,
        "seen": stats.seen,
        "held": stats.held.tolist(),
        "bytes": stats.bytes - stats.spare_bytes,
        "full_bytes": stats.full_bytes,
        "compressions": stats.compressions,
        "prefill_seconds": found.prefill_seconds,
        "decode_seconds": found.decode_seconds,
        "scoring_seconds": stats.scoring_seconds,
        "remarks": [*remarks, *stats.remarks, *found.remarks],
    }


def _note(remark: str) -> None:
    if remark:
        typer.echo(in_options(f"note: {remark}"), err=True)


def _texts(prompt: str | None, asked: Generation) -> list[str]:
    """The prompts, what comes before them in front of each."""
    from forward_influence.data.sources import text_file

    front = []
    for path, typed in ((asked.file, "--file"), (asked.prompt_file, "--prompt-file")):
        if path is not None and not path.exists():
            raise UsageError(f"there is no file {str(path)!r}; {typed} takes a text file")
    if asked.file is not None:
        front.append(text_file(asked.file).text)
    found = [standard_input() if prompt == "-" else prompt] if prompt is not None else []
    found += asked.prompts
    if asked.prompt_file is not None:
        found += [line for line in text_file(asked.prompt_file).text.splitlines() if line.strip()]
    if not found and not front:
        raise UsageError("no prompt; give one in quotes, or - to read it from standard input, or --file")
    return ["\n\n".join([*front, text]) for text in found] or front


def _show(text: str) -> None:
    """Text of a model as it comes; what could steer the terminal is made visible."""
    typer.echo("".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text), nl=False)


def _report(found: Generated) -> list[str]:
    """What is held and what that took, in lines."""
    stats = found.stats
    lines = [f"tokens: {found.prompt_tokens} of the prompt, {found.new_tokens} generated; {stats.seen} seen"]
    lines.append(f"held: {_held(found)}")
    lines += _chosen(found)
    now, full = (stats.bytes - stats.spare_bytes) / 1e6, stats.full_bytes / 1e6
    lines.append(f"cache: {now:,.1f} MB; {full:,.1f} MB had it been full ({now / max(full, 1e-9):.0%})")
    beside = f" each, {found.together} side by side" if found.together > 1 else ""
    speed = f"{found.tokens_per_second:,.1f} tokens/s{beside}" if found.new_tokens > 1 else "no tokens after the first"
    lines.append(f"speed: first token after {found.prefill_seconds:.2f} s, then {speed}")
    head = f", the head for entropy {stats.head_seconds:.2f} s" if stats.head_seconds else ""
    times = f"{stats.compressions} compression{'' if stats.compressions == 1 else 's'}"
    lines.append(f"scoring: {stats.scoring_seconds:.2f} s in {times}{head}")
    return lines + [f"note: {remark}" for remark in (*stats.remarks, *found.remarks)]


def _chosen(found: Generated) -> list[str]:
    """How much of what the last compression left was the rule's choice; nothing where nothing was removed."""
    from forward_influence.analysis.formatting.held_words import held_cell
    from forward_influence.compression import Outcome

    outcome = Outcome.after(found.stats)
    if outcome.ends is None:
        return []
    first, last = outcome.ends
    counts = {"held": outcome.held, "pinned": outcome.pinned, "chosen": outcome.chosen}
    pinned = f"the first {first} and the last {last}"
    return [f"right after the last compression: {held_cell(counts)} (pinned, {pinned}, and chosen) a layer and head"]


def _held(found: Generated) -> str:
    """Tokens held per layer: one number where all layers hold as many, else each layer's, a range over its heads."""
    stats = found.stats
    low, high = stats.held.amin(-1).tolist(), stats.held.amax(-1).tolist()
    if min(low) == max(high):
        return f"{low[0]} of {stats.seen} tokens in each of {len(low)} layers"
    each = [str(a) if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True)]
    layers = [f"layer {layer}: {n}" for layer, n in zip(stats.layers, each, strict=True)]
    return f"{float(stats.held.double().mean()):.1f} of {stats.seen} tokens on average; " + ", ".join(layers)

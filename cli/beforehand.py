"""What is said before anything is measured: how many documents fit, what budgets come to, how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from forward_influence.analysis.formatting.wording import many
from forward_influence.cli.costs import measured_throughput
from forward_influence.cli.wording import in_options

if TYPE_CHECKING:
    from forward_influence.data.cutting import Prepared
    from forward_influence.measurement.briefing import Lengths
    from forward_influence.measurement.request import Request
    from forward_influence.models.sizes import Sizes

#: Names are set apart from what is said of them by this many characters.
_NAMES = 12
#: Seconds that may be spent on finding out how fast this machine is.
_PROBE_S = 0.2


def say(name: str, text: str) -> None:
    """A line of the block, on the standard error stream."""
    typer.echo(f"{name:<{_NAMES}}{in_options(text)}", err=True)


def say_what_is_asked(request: Request, prepared: Prepared) -> None:
    """Documents, conditions and budgets."""
    from forward_influence.measurement.briefing import budgets_in_words, documents_in_words
    from forward_influence.measurement.conditions import expand

    say("documents", documents_in_words(request, prepared, _others(request, prepared)))
    say("conditions", f"{len(expand(request, '', 0)):,} for each document")
    for number, line in enumerate(budgets_in_words(request)):
        say("" if number else "budget", line)


def _others(request: Request, prepared: Prepared) -> list[Lengths]:
    """Where there are too few documents for intervals: lengths at which enough, and at which all, would do."""
    from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS
    from forward_influence.measurement.briefing import fitting

    taken = len(prepared.documents)
    if taken >= MINIMUM_DOCUMENTS:
        return []
    short = sum(skipped.length is not None for skipped in prepared.skipped)
    return fitting(request, prepared, sorted({MINIMUM_DOCUMENTS, taken + short}))


def say_what_would_do(
    request: Request, prepared: Prepared, prepare: Callable[[int], Prepared], instead: Callable[..., str]
) -> None:
    """Where there are too few documents for intervals, the command that measures enough.

    Args:
        prepare: the documents again, so many at most.
        instead: the command that runs, with other values of some fields.
    """
    from forward_influence.analysis.statistics.inference import MINIMUM_DOCUMENTS

    taken = len(prepared.documents)
    if taken >= MINIMUM_DOCUMENTS:
        return
    lacking = f"{many(taken, 'document')}, and intervals need {MINIMUM_DOCUMENTS}; "
    changed: dict[str, object] = {}
    if taken + prepared.unseen >= MINIMUM_DOCUMENTS:  # fewer were asked for than there are
        if len(prepare(MINIMUM_DOCUMENTS).documents) >= MINIMUM_DOCUMENTS:
            changed = {"max_documents": MINIMUM_DOCUMENTS}
    else:
        enough = next((one for one in _others(request, prepared) if one.documents >= MINIMUM_DOCUMENTS), None)
        if enough is not None:
            changed = {"context": enough.context, "continuation": enough.continuation}
    remedy = f"this would do: {instead(**changed, out=None)}" if changed else "give more `documents`, or longer ones"
    say("too few", lacking + remedy)


def say_how_long(sizes: Sizes, request: Request, documents: int, chunk: int) -> None:
    """How long so many documents take here, from the model's operations and what this machine reaches."""
    from forward_influence.measurement.costs import plan

    throughput = measured_throughput(sizes, _PROBE_S)
    hours = plan(sizes, request, documents, chunk=chunk, throughput=throughput).hours
    assert hours is not None
    say("time", f"about {_rounded(hours * 3600)}, as fast as this machine is now")


def _rounded(seconds: float) -> str:
    """Seconds, minutes or hours with two digits at most: it is a prediction."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.0f} {name}s" if count >= 10 else f"{count:.2g} {name}s"
    return many(max(1, math.ceil(seconds)), "second")

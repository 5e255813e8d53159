"""Named spans of a document, and what a measurement makes of them: context, measured positions, candidates.

A conversation has the spans `system`, `history` (each message before the last exchange), `user`, `thought` and
`answer`; a text put together from fields has a span for each. `prompt` is all before the last reply, and `response` is
thought and answer, where a document has no spans of those names.

A position is measured where the token that it predicts belongs to a measured span: the distribution that an answer's
first token is drawn from counts, the one behind its last token does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forward_influence.errors import UsageError

#: Spans of the last reply; everything else is its prompt.
REPLY = ("thought", "answer")
#: A continuation has near, middle and far.
_FEWEST = 3


@dataclass(frozen=True)
class Span:
    """A named part of a document, [start, end) in characters, tokens or measured positions."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class SpanChoice:
    """Which spans are context, which are measured, and which hold the candidates; names as typed.

    Attributes:
        measure_on: at least one.
        context_of: the context ends where the last of them does; none: right before what is measured.
        candidates_of: none: the whole context.
    """

    measure_on: tuple[str, ...]
    context_of: tuple[str, ...] = ()
    candidates_of: tuple[str, ...] = ()

    @staticmethod
    def parse(measure_on: str, context_of: str | None = None, candidates_of: str | None = None) -> SpanChoice:
        """From texts like "prompt+thought".

        Raises:
            UsageError: no name, a name twice, or a span that is context and measured.
        """
        made = SpanChoice(
            _names("measure_on", measure_on), _names("context_of", context_of), _names("candidates_of", candidates_of)
        )
        if both := set(made.measure_on) & set(made.context_of):
            raise UsageError(f"`context_of` and `measure_on` overlap in {sorted(both)[0]!r}; name it in one of them")
        if both := set(made.measure_on) & set(made.candidates_of):
            raise UsageError(
                f"`candidates_of` and `measure_on` overlap in {sorted(both)[0]!r}: what is measured on is not removed"
            )
        return made


def _names(field: str, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split("+"))
    if not all(names):
        raise UsageError(f"`{field}` {text!r} is no list of spans; give names like prompt+thought")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"`{field}` names {twice[0]!r} twice; give it once")
    return names


@dataclass(frozen=True)
class Layout:
    """How a document is measured by spans.

    Attributes:
        context, continuation: tokens.
        positions: stretches [start, end) of distances that are measured.
        candidates: tokens [first, last) of the context that rules choose among; None: all that are not protected.
        spans: of the whole document, in tokens.
        measured: of the measured positions, counted through from 0.
    """

    context: int
    continuation: int
    positions: tuple[tuple[int, int], ...]
    candidates: tuple[int, int] | None
    spans: tuple[Span, ...]
    measured: tuple[Span, ...]

    @property
    def count(self) -> int:
        """How many positions are measured."""
        return sum(end - start for start, end in self.positions)


def lay_out(spans: Sequence[Span], choice: SpanChoice) -> Layout | str:
    """How a document with these spans (in tokens, ascending, apart) is measured; or why it cannot be, in words."""
    chosen: dict[str, list[Span]] = {"measure_on": [], "context_of": [], "candidates_of": []}
    for field, found in chosen.items():
        for name in getattr(choice, field):
            named = _called(spans, name, min((span.start for span in chosen["measure_on"]), default=None))
            if not named:
                there = ", ".join(dict.fromkeys(span.name for span in spans))
                return f"no span {name!r} (`{field}`); it has {there or 'none'}"
            found += named
    measured = sorted(chosen["measure_on"], key=lambda span: span.start)
    for field in ("context_of", "candidates_of"):
        if late := next((span for span in chosen[field] if span.start >= measured[0].start), None):
            return f"{late.name} does not come before {measured[0].name}, which is measured (`{field}`)"
    end = max((span.end for span in chosen["context_of"]), default=measured[0].start)
    context = min(end, measured[0].start - 1)  # the position before a span predicts its first token
    if context < 1:
        return f"nothing comes before {measured[0].name}"
    positions = tuple((span.start - 1 - context, span.end - 1 - context) for span in measured)
    at, ranks = 0, []
    for span in measured:
        ranks.append(Span(span.name, at, at + span.end - span.start))
        at = ranks[-1].end
    if at < _FEWEST:
        return f"{'+'.join(choice.measure_on)} has {at} tokens, {_FEWEST} are needed"
    candidates = _candidates(spans, chosen["candidates_of"], context) if chosen["candidates_of"] else None
    if isinstance(candidates, str):
        return candidates
    return Layout(context, measured[-1].end - context, positions, candidates, tuple(spans), tuple(ranks))


def _called(spans: Sequence[Span], name: str, before: int | None) -> list[Span]:
    """The spans of a name; of `prompt` and `response`, where there are none, what they stand for.

    Args:
        before: where what is measured begins, once it is known: no prompt lies behind it.
    """
    found = [span for span in spans if span.name == name]
    if not found and name == "prompt":
        found = [span for span in spans if span.name not in REPLY and (before is None or span.start < before)]
    if not found and name == "response":
        found = [span for span in spans if span.name in REPLY]
    return found


def _candidates(spans: Sequence[Span], chosen: Sequence[Span], context: int) -> tuple[int, int] | str:
    """From the first to behind the last of the chosen spans, with what a template writes between them."""
    first, last = min(span.start for span in chosen), min(context, max(span.end for span in chosen))
    if first >= last:
        return f"{chosen[0].name} is not part of the context (`candidates_of`)"
    for span in spans:
        if span not in chosen and span.start < last and span.end > first:
            return f"{span.name} lies among the spans of `candidates_of`; name it there too"
    return first, last


def described_layout(layout: Layout | None) -> dict[str, Any]:
    """A layout as a manifest has it: lists of [name, start, end]; nothing without one."""
    if layout is None:
        return {}
    found: dict[str, Any] = {
        name: [[s.name, s.start, s.end] for s in getattr(layout, name)] for name in ("spans", "measured")
    }
    found |= {"context": layout.context, "continuation": layout.continuation}
    return {**found, "positions": [list(stretch) for stretch in layout.positions]}

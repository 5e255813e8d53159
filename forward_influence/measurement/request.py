"""What to measure: every choice of a run, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from forward_influence.data.spans import Layout, SpanChoice
from forward_influence.errors import UsageError, alternatives, did_you_mean
from forward_influence.influence.effects import DEFAULT, TOGETHER, Effect, effects_of, names
from forward_influence.measurement.choices import Choices
from forward_influence.selectors import Selector, parse_selector
from forward_influence.selectors.base import remarks_of
from forward_influence.selectors.protection import PROTECT_LAST, last_protected, parse_protected
from forward_influence.selectors.registry import own_sources, spec_of
from forward_influence.selectors.selection import Budget, Candidates
from forward_influence.tracing.needs import Needs
from forward_influence.utils.configuration import described, options_of
from forward_influence.utils.display import Displayed

if TYPE_CHECKING:
    from forward_influence.compression.contenders import Contender
    from forward_influence.data.cutting import Cut

MOST_DRAWS = 1000
#: Other temperatures than 0: dividing logits by less overflows, by more leaves nothing of them.
TEMPERATURES = (0.01, 100.0)


@described
@dataclass(frozen=True)
class Request(Choices, Displayed):
    """The choices of a run, checked against one another and against the rules and compressors that they name.

    Everything that can be found without a model is refused here. Where spans decide what is measured (`measure_on`),
    lengths and candidates are those of a document: `at` makes the request for one, by its `layout`.
    """

    layout: Layout | None = None
    contenders: tuple[Contender, ...] = field(init=False, repr=False, compare=False)
    rules: tuple[Selector, ...] = field(init=False, repr=False, compare=False)
    spans: SpanChoice | None = field(init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        given = ", ".join(
            f"{name}={getattr(self, name)!r}"
            for name in self.choices()
            if name in ("selectors", "context", "continuation")
            or getattr(self, name) != getattr(type(self), name, None)
        )
        return f"Request({given})"

    def __post_init__(self) -> None:
        self._match_held()
        for name in ("selectors", "budgets", "compressors"):
            values = getattr(self, name)
            alone = isinstance(values, str | float | int | Selector) or callable(values)
            read = spec_of if name == "selectors" else str
            object.__setattr__(self, name, tuple(read(v) for v in ((values,) if alone else values)))
        super().__post_init__()
        object.__setattr__(self, "spans", self._spans())
        if self.effect not in (known := (*names(), *TOGETHER)):
            near = did_you_mean(self.effect, list(known))
            raise UsageError(f"`effect` {self.effect} is unknown{near}; it is {alternatives(known)}")
        if self.protect_last is not None:
            object.__setattr__(self, "protect_last", parse_protected(self.protect_last))
        if isinstance(self.protect_last, float) and self.selectors:
            raise UsageError(
                f"`protect_last` {self.protect_last:g} is a share of what a compressor keeps; rules choose among the "
                "same candidates at all budgets: give a count like 64"
            )
        if self.draws > MOST_DRAWS:
            raise UsageError(f"`draws` {self.draws} is a pass over the continuation each; give at most {MOST_DRAWS}")
        check_temperature(self.temperature)
        self._check_slices()
        if not self.selectors and not self.compressors:
            raise UsageError("no rule to measure; name one with `selectors`, `forward-influence selectors` lists them")
        if not self.budgets and not self.match_held:
            raise UsageError("no budget; give one with `budgets`, 0.2 say")
        rules = tuple(parse_selector(text) for text in self.selectors)
        _refuse_twice("rule", [rule.spec for rule in rules])
        _refuse_twice("budget", [budget.text for budget in self.parsed_budgets])
        object.__setattr__(self, "rules", rules)
        self._check_states()
        object.__setattr__(self, "contenders", self._contenders())
        if self.is_unplaced:
            return
        for budget in self.parsed_budgets if rules else ():
            self.candidates.to_choose(budget, self.mode)
        self._check_held()

    def _spans(self) -> SpanChoice | None:
        """The spans that are asked for."""
        if self.measure_on is None:
            for name in ("context_of", "candidates_of"):
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` goes with `measure_on`, the spans to measure on; give both")
            return None
        if self.segments != 1 or self.continuation_from != "text" or self.positions_per_bin is not None:
            raise UsageError(
                "`measure_on` measures every position of a document's own spans: leave out `segments`, "
                "`continuation_from` and `positions_per_bin`"
            )
        if self.compressors and self.candidates_of is not None:
            raise UsageError("compressors choose among all that they hold; leave out `candidates_of`")
        return SpanChoice.parse(self.measure_on, self.context_of, self.candidates_of)

    @property
    def is_unplaced(self) -> bool:
        """Whether lengths and candidates depend on the document, and none is given."""
        return self.spans is not None and self.layout is None

    def at(self, layout: Layout | None) -> Request:
        """The request for a document: with its lengths, where spans decide; else itself.

        Raises:
            UsageError: spans decide and the document was cut by lengths, or it leaves too few candidates.
        """
        if self.spans is None:
            return self
        if layout is None:
            raise UsageError("spans decide what is measured; give `prepare` the request's `spans`")
        return replace(self, context=layout.context, continuation=layout.continuation, layout=layout)

    def longest(self, documents: Iterable[Cut]) -> Request:
        """The request for the longest of these documents that it can be made for, where spans decide; else itself.

        Raises:
            UsageError: it can be made for none.
        """
        if self.spans is None:
            return self
        layouts = [document.layout for document in documents if document.layout is not None]
        refused = UsageError("no document has spans to measure")
        for layout in sorted(layouts, key=lambda one: one.context + one.continuation, reverse=True):
            try:
                return self.at(layout)
            except UsageError as error:
                refused = error
        raise refused

    def _match_held(self) -> None:
        """Where all that is measured holds a number of entries, there are no budgets."""
        counts = (self.match_held,) if isinstance(self.match_held, int) else tuple(self.match_held)
        object.__setattr__(self, "match_held", counts)
        if not counts:
            return
        if not self.compressors:
            raise UsageError("`match_held` is what compressors hold; name one with `compressors`")
        if not self.selectors:
            if self.budgets and self.budgets is not type(self).budgets:
                raise UsageError("`budgets` and `match_held` both say how much is held; give one of them")
            object.__setattr__(self, "budgets", ())

    def _check_held(self) -> None:
        """Refuse to hold as much as is ever seen, or less than a context that is kept whole takes."""
        seen = self.context + (0 if self.every is None else self.continuation // self.every * self.every)
        for contender in self.contenders:
            budget = contender.compressor.budget
            if budget.of_all and budget.value >= seen:
                raise UsageError(
                    f"`match_held` {int(budget.value)}: no more than {seen} tokens are seen when a cache is "
                    "compressed, so that nothing would be removed; hold fewer"
                )
            contender.compressor.check_prompt(self.context)

    def _contenders(self) -> tuple[Contender, ...]:
        """Compressors at budgets, without the full cache: that is what they are compared with."""
        if self.every is not None and not self.compressors:
            raise UsageError("`every` is when compressors compress again; name one with `compressors`")
        if not self.compressors:
            return ()
        from forward_influence.compression.contenders import contenders

        sliced = self.layers or self.heads or self.per_layer or self.rerotate
        if self.effect != DEFAULT or sliced or self.states != "keep":
            raise UsageError(
                "a compressor is measured as it is: leave out `effect`, `layers`, `heads`, `per_layer`, `rerotate` and "
                "`states`"
            )
        if self.verify and not self.selectors:
            raise UsageError("`verify` checks the removal of rules' tokens; leave it out, or name one with `selectors`")
        asked, window = self.protect_last, self._window
        made = contenders(
            self.compressors,
            self.budgets,
            self.every,
            match_held=self.match_held,
            protect_first=self.protect_first,
            protect_last=max(asked, window) if isinstance(asked, int) else asked,  # type: ignore[arg-type]
            window=window,
        )
        both = {contender.name for contender in made} & {rule.spec for rule in self.rules}
        if both and self.mode == "keep":
            raise UsageError(
                f"{sorted(both)[0]} is measured as a rule and as a compressor, and both keep what they choose: results "
                "would bear one name; measure them with two `out`"
            )
        return tuple(made[1:])

    def _check_slices(self) -> None:
        for name in ("layers", "heads"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(sorted(set(values))))
                if not values:
                    raise UsageError(f"`{name}` names none; leave it out for all")
        if self.positions_per_bin is not None and not 1 <= self.positions_per_bin <= self.bin_width:
            raise UsageError(
                f"`positions_per_bin` {self.positions_per_bin} of bins of {self.bin_width} positions cannot be; "
                f"give 1 to {self.bin_width}"
            )
        if self.verify and self.rerotate:
            raise UsageError("`verify` checks by masking, which moves no positions; leave out `rerotate` or `verify`")

    def _check_states(self) -> None:
        """States lose whole tokens, everywhere, and there is no second way to measure that."""
        if self.states == "keep":
            return
        if self.effect != DEFAULT or self.layers or self.heads or self.per_layer or self.rerotate or self.verify:
            raise UsageError(
                "`states` ablate is about tokens as a whole, and about the total effect: leave out `effect`, `layers`, "
                "`heads`, `per_layer`, `rerotate` and `verify`"
            )
        finer = [rule for rule in self.rules if rule.per != "token"]
        if finer:
            raise UsageError(
                f"`states` ablate removes whole tokens, and {finer[0].spec} chooses per {finer[0].per}; ask for it per "
                "token (per=token)"
            )

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """The names of what can be chosen."""
        return tuple(options_of(cls))

    @property
    def effects(self) -> tuple[Effect, ...]:
        """The effects measured."""
        return effects_of(self.effect)

    @property
    def parsed_budgets(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(Budget.parse(text) for text in self.budgets)

    @property
    def needs(self) -> Needs:
        """What one pass over a context has to record for all rules."""
        return Needs.merge(need for rule in self.rules for need in rule.needs)

    @property
    def _window(self) -> int:
        """The widest window that a rule observes from."""
        return max((rule.observation_window for rule in self.rules), default=0)

    @property
    def protected_last(self) -> int | float:
        """Tokens protected at the end, for all alike: a count, or where there are compressors only a share of what is
        kept. As asked, and never fewer than the widest window that a rule observes from."""
        if self.contenders:
            found = self.contenders[0].protect_last
            assert found is not None
            return found
        return max(PROTECT_LAST if self.protect_last is None else int(self.protect_last), self._window)

    @property
    def candidates(self) -> Candidates:
        """The tokens that every rule of the run chooses among; without rules, those that its controls are about."""
        last = self.protected_last
        if self.layout is not None and self.layout.candidates is not None:
            return self._candidates_of_spans(*self.layout.candidates)
        if not self.rules:
            last = last_protected(last, self.context)
            return Candidates.of(self.context, min(self.protect_first, self.context - last - 1), last)
        assert isinstance(last, int)
        try:
            return Candidates.of(self.context, self.protect_first, last)
        except UsageError as error:
            if self._window <= (PROTECT_LAST if self.protect_last is None else int(self.protect_last)):
                raise
            widest = max(self.rules, key=lambda rule: rule.observation_window)
            raise UsageError(f"{widest.spec} observes from {widest.observation_window} tokens: {error}") from error

    def _candidates_of_spans(self, first: int, last: int) -> Candidates:
        """Those of the spans that are not protected."""
        protected = int(self.protected_last)
        low, high = max(first, self.protect_first), min(last, self.context - protected)
        if low >= high:
            raise UsageError(
                f"the {last - first} tokens of `candidates_of` {self.candidates_of} are among the first "
                f"{self.protect_first} or the last {protected} of the context, which are protected; lower "
                "`protect_last`, and the window that rules observe from"
            )
        return Candidates(self.context, low, high, of_spans=True)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What readers of the results must know about rules at these budgets, a fallback that holds say."""
        found: list[str] = []
        if self.rules and not self.is_unplaced:
            candidates = self.candidates
            numbers = [candidates.to_choose(budget, self.mode) for budget in self.parsed_budgets]
            found += [
                remark for rule in self.rules for number in numbers for remark in remarks_of(rule, number, candidates)
            ]
        if self.contenders:
            from forward_influence.compression.contenders import narrowed

            found += narrowed(self.contenders)
        return tuple(dict.fromkeys(found))

    @property
    def span(self) -> int:
        """Tokens per segment."""
        return self.context + self.continuation

    def check_positions(self, positions: int | None, model: str) -> None:
        """Refuse a span beyond the positions that a model was made for.

        Raises:
            UsageError: too long.
        """
        if positions is not None and self.span > positions:
            raise UsageError(
                f"`context` {self.context} + `continuation` {self.continuation} = {self.span} tokens, but {model} was "
                f"made for {positions} positions; ask for less"
            )

    def configuration(self) -> dict[str, Any]:
        """What decides the result columns, in the manifest's names."""
        values: dict[str, Any] = {
            name: getattr(self, name) for name, said in options_of(type(self)).items() if said.decides
        }
        values["selectors"] = [rule.spec for rule in self.rules]
        values["rule_sources"] = own_sources([*self.rules, *(c.compressor.rule for c in self.contenders)])
        values["budgets"] = list(self.budgets)
        values["protect_last"] = self.protected_last
        if self.continuation_from == "text":
            values["temperature"] = None
        if self.positions_per_bin is None:
            values["bin_width"] = None
        if self.spans is not None:
            values["context"] = values["continuation"] = None
        # what is not asked for is left out: an option that a later version adds leaves older runs what they are
        absent = (None, False)
        return {k: v for k, v in values.items() if not any(v is one for one in absent) and v not in ((), [], {})}


def check_temperature(value: float) -> None:
    """Refuse a temperature at which logits overflow or vanish; 0 is greedy.

    Raises:
        UsageError: it is neither 0 nor within `TEMPERATURES`.
    """
    low, high = TEMPERATURES
    if value != 0 and not low <= value <= high:
        raise UsageError(f"`temperature` {value:g} is no temperature; give {low:g} to {high:g}, or 0 for greedy")


def _refuse_twice(what: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"{what} {value} is given twice; give it once")

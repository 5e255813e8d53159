"""A compressor: a rule, how much of the cache it keeps, how that is divided, and when it compresses."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from forward_influence.compression.schedule import Schedule
from forward_influence.compression.schemes import SCHEMES
from forward_influence.errors import UsageError, did_you_mean
from forward_influence.selectors import Selector, discover, parse_selector
from forward_influence.selectors.protection import PROTECT_FIRST, PROTECT_LAST, last_protected, parse_protected
from forward_influence.selectors.selection import Budget
from forward_influence.storage.evaluation import FULL
from forward_influence.tracing.needs import Needs


@dataclass(frozen=True)
class Named:
    """A published compressor: which rule it is, and what belongs to it beside the rule.

    Attributes:
        rule: specification of the rule.
        scheme: how budgets are divided.
        keeps_prompt: the prompt stays whole, the budget is of what follows it.
        about: one line for people.
    """

    rule: str
    about: str
    scheme: str = "rule"
    keeps_prompt: bool = False


#: Compressors by the names of their papers; any other rule is a compressor under its own name.
NAMED = {
    FULL: Named("recent", "everything is kept"),
    "snapkv": Named("attention", "attention of the last 64 queries (arXiv:2404.14469)"),
    "pyramidkv": Named("pyramid", "the same, fewer tokens in deeper layers (arXiv:2406.02069)"),
    "adakv": Named("attention:heads=adaptive", "the same, heads compete (arXiv:2407.11550)"),
    "streamingllm": Named("streaming", "the first tokens and the most recent ones (arXiv:2309.17453)"),
    "h2o": Named("h2o", "half heavy hitters, half recent tokens (arXiv:2306.14048)", scheme="recent"),
    "rpc": Named("rpc", "of the generated tokens, what the last 32 attend to (arXiv:2505.13866)", keeps_prompt=True),
    "expected-attention-adakv": Named(
        "expected-attention:epsilon=0.01,heads=adaptive", "expected attention as kvpress' leaderboard runs it"
    ),
    "prompt-recent": Named("recent", "the prompt, and the latest of the generated tokens", keeps_prompt=True),
    "random-protected": Named("random", "of the generated tokens, a random choice", keeps_prompt=True),
}


@dataclass(frozen=True)
class Compressor:
    """A rule, a budget, a scheme and a schedule.

    Attributes:
        name: as it was asked for.
        rule: scores what is held.
        budget: a fraction of the tokens seen, a count, or a count of all that is held ("held=200"); per layer and head
            on average, pinned tokens included.
        schedule: when to compress.
        scheme: how the budget is divided, a name of `SCHEMES`.
        protect_first: attention sinks, always kept and counted.
        protect_last: recent tokens, always kept and counted: a count, or as a float the share of what is kept (of what
            is kept beside the prompt, where that stays whole); at most half of it either way.
        keeps_prompt: the prompt is always kept, and the budget is of the tokens after it, unless it is of all.
        window_on_top: the protected recent tokens are the rule's window and come on top of the budget (RPC).
    """

    name: str
    rule: Selector
    budget: Budget
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    scheme: str = "rule"
    protect_first: int = PROTECT_FIRST
    protect_last: int | float = PROTECT_LAST
    keeps_prompt: bool = False
    window_on_top: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"scheme {self.scheme!r} is unknown{did_you_mean(self.scheme, list(SCHEMES))}; "
                f"it is one of {', '.join(SCHEMES)}"
            )
        if self.protect_first < 0:
            raise UsageError("a negative number of tokens cannot be protected; give 0 or more")
        if self.protect_last == 0 and self.rule.observation_window and not self.is_full:
            raise UsageError(
                f"{self.name} observes from the last tokens that are protected, and none is; give `protect_last` 1, say"
            )
        if self.window_on_top and not isinstance(self.protect_last, int):
            raise UsageError(
                f"the window of {self.name} comes on top of its budget: a count, {self.rule.name}:window=32 say"
            )
        if not self.needs.live:
            raise UsageError(
                f"rule {self.rule.name!r} looks at more than a running cache shows; it cannot compress one"
            )
        if self.needs.whole and (self.schedule.every is not None or self.keeps_prompt):
            raise UsageError(
                f"{self.name} reads the whole prompt again and compresses it once, before anything is generated; leave "
                "out `every` and `keep_prompt`"
            )
        if self.keeps_prompt and self.schedule.every is None and not self.is_full:
            raise UsageError(f"{self.name} keeps the prompt and compresses what is generated; give every=1024, say")

    @property
    def is_full(self) -> bool:
        """Whether nothing is ever removed."""
        return self.name == FULL or (self.budget.is_fraction and self.budget.value == 1)

    @property
    def needs(self) -> Needs:
        """What has to be recorded while tokens pass."""
        return Needs.merge(self.signals)

    @property
    def signals(self) -> frozenset[str]:
        """Needs of the rule and the scheme, in words."""
        return self.rule.needs | SCHEMES[self.scheme].needs(self.rule)

    def kept(self, seen: int, prompt: int) -> int:
        """How many tokens to hold per layer and head on average, after `seen` tokens, `prompt` of them the prompt's.

        Raises:
            UsageError: as `check_prompt`.
        """
        if self.is_full:
            return seen
        self.check_prompt(prompt)
        if self.budget.of_all or not self.keeps_prompt:
            return min(seen, self.budget.count(seen))
        if seen == prompt:
            return seen
        return min(seen, prompt + self.budget.count(seen - prompt) + self._on_top)

    def pinned(self, kept: int, prompt: int) -> tuple[int, int]:
        """How many first and last tokens are kept whatever they score, given how many are kept altogether."""
        if self.keeps_prompt:
            rest = kept - prompt
            return prompt, min(self._on_top, rest) if self.window_on_top else last_protected(self.protect_last, rest)
        last = max(1, kept // 2) if self.scheme == "recent" else last_protected(self.protect_last, kept)
        return min(self.protect_first, kept - last), last

    def check_prompt(self, prompt: int) -> None:
        """Refuse a prompt that is kept whole and leaves nothing to choose of what is to be held.

        Raises:
            UsageError: with how many entries it would take.
        """
        if not (self.keeps_prompt and self.budget.of_all):
            return
        least = next(rest for rest in itertools.count(1) if self.pinned(prompt + rest, prompt)[1] < rest)
        if self.budget.value < prompt + least:
            window = f" and a window of {self._on_top} on top" if self._on_top else ""
            raise UsageError(
                f"{self.name} keeps the prompt whole, {prompt} tokens{window}: to hold {int(self.budget.value)} "
                f"entries leaves none to choose; hold at least {prompt + least}, or leave {self.name} out"
            )

    @property
    def _on_top(self) -> int:
        """Recent tokens that are kept on top of the budget."""
        return int(self.protect_last) if self.window_on_top else 0


def make_compressor(
    rule: str | Selector,
    budget: str | float | int | Budget = "1.0",
    *,
    every: int | None = None,
    prefill: bool = True,
    scheme: str | None = None,
    protect_first: int = PROTECT_FIRST,
    protect_last: int | float | str | None = None,
    keep_prompt: bool | None = None,
) -> Compressor:
    """Make a compressor from its name (`NAMED`, or any rule with its parameters) or from a rule.

    Args:
        rule: "infokv", "attention:window=32", "h2o", "rpc", "random-protected", "full", or a `Selector`.
        budget: a fraction (with a point; 1.0 is everything), a count of tokens, or "held=200": all that is held, a
            prompt that is kept whole included, comes to so many.
        every: compress each time that so many tokens have come.
        prefill: compress when the prompt is through.
        scheme: how the budget is divided between layers and heads; default: as the compressor has it.
        protect_first: pinned tokens at the start.
        protect_last: pinned tokens at the end: a count (64), or a share of what is kept (0.25), at most half of it; by
            default 64 or the rule's own window, if that is larger. A rule that observes from a window observes from as
            many of these as there are. Of `rpc`, whose window comes on top, by default that window.
        keep_prompt: keep the prompt whole, the budget is of what follows; default: as the compressor has it.

    Raises:
        UsageError: an unknown compressor, a budget of nothing, a schedule that never compresses.
    """
    name, named, selector = _resolved(rule)
    parsed = budget if isinstance(budget, Budget) else Budget.parse(budget, whole=True)
    keeps = named.keeps_prompt if keep_prompt is None else keep_prompt
    on_top = selector.name == "rpc" and named.keeps_prompt and keeps
    if protect_last is not None:
        protect_last = parse_protected(protect_last)
    else:
        protect_last = selector.observation_window if on_top else max(PROTECT_LAST, selector.observation_window)
    return Compressor(
        name=name,
        rule=selector,
        budget=Budget.parse("1.0", whole=True) if name == FULL else parsed,
        schedule=Schedule(prefill=prefill, every=every),
        scheme=scheme or named.scheme,
        protect_first=protect_first,
        protect_last=protect_last,
        keeps_prompt=keeps,
        window_on_top=on_top,
    )


def _resolved(rule: str | Selector) -> tuple[str, Named, Selector]:
    """Name as asked for, the entry that holds for it, and the rule."""
    if isinstance(rule, Selector):
        return rule.spec, Named(rule.name, ""), rule
    name, _, parameters = rule.strip().partition(":")
    if named := NAMED.get(name):
        joined = named.rule + ("," if ":" in named.rule else ":") + parameters if parameters else named.rule
        return rule.strip(), named, parse_selector(joined)
    if "/" not in name and "." not in name and not parameters:
        _refuse_unknown(name)
    return rule.strip(), Named(name, ""), parse_selector(rule)


def _refuse_unknown(name: str) -> None:
    from forward_influence.selectors.registry import installed

    known = compressor_names()
    if name not in known and name not in installed():
        raise UsageError(
            f"unknown compressor {name!r}{did_you_mean(name, known)}; it is {', '.join(NAMED)}, or any rule that "
            "`forward-influence selectors` lists"
        )


def explained_compressors() -> list[dict[str, str]]:
    """What there is to say of every compressor, published ones first.

    Rules of other packages, which are compressors too, are not loaded for it.

    Returns:
        `compressor`, `about`, `rule`, `scheme`, and `prompt`: whole or compressed.
    """
    from forward_influence.selectors import explained

    found = []
    for name in compressor_names():
        named = NAMED.get(name)
        if named is None:
            rule = explained(discover()[name])
            named = Named(name, rule.summary)
            if not Needs.merge(rule.needs or ()).live:
                continue
        kept = "whole" if named.keeps_prompt or name == FULL else "compressed"
        rule_of = "" if name == FULL else named.rule
        found.append(
            {"compressor": name, "about": named.about, "rule": rule_of, "scheme": named.scheme, "prompt": kept}
        )
    return found


def compressor_names() -> Sequence[str]:
    """Names that `make_compressor` takes: published compressors, then rules."""
    return [*NAMED, *(rule for rule in discover() if rule not in NAMED)]

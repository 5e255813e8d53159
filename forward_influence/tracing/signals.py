"""Names of what a pass over a context can record, and the parsing of a rule's `needs`.

A need is a name, with a number behind a colon where one applies: "entropy:256", "window:64". Only what some rule
declares is recorded, since some signals cost time (accumulated attention) or memory (window queries).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forward_influence.errors import UsageError, did_you_mean

#: Signals and what they cost.
KNOWN = {
    "window": "the last W queries of every layer; attention of the observation window",
    "entropy": "predictive entropy of each token from the K largest logits (0: all): the head runs on the context",
    "next_entropy": "the same of what comes after each token: of the distribution that the model gives there",
    "surprisal": "-log p of each token; needs the head on the context",
    "representation_change": "1 - cos between each layer's output and the last one's",
    "accumulated_attention": "attention received from every later query; costs attention a second time",
    "query_moments": "mean and covariance of the queries before the rotary embedding",
    "model": "the model itself, for rules that run a pass of their own over the context",
    "gradients_near": "Fisher gradients of the continuation's near zone, R label samples: backward passes over it",
    "gradients_middle": "the same of the middle zone",
    "gradients_far": "the same of the far zone",
    "closing_near": "gradients of the continuation's divergence in its near zone while gates close: one backward pass",
    "closing_middle": "the same of the middle zone",
    "closing_far": "the same of the far zone",
}
GRADIENTS = "gradients_"
CLOSING = "closing_"
DEFAULT_SAMPLES = 8
DEFAULT_TOP_K = 256
DEFAULT_WINDOW = 64


@dataclass(frozen=True)
class Needs:
    """What one pass has to record, merged over all rules.

    Attributes:
        window: how many of the last queries to keep; 0 for none.
        entropy, next_entropy: the top_k values asked for.
        surprisal, representation_change, accumulated_attention, query_moments, model: whether to record them.
        gradients: label samples of the continuation's gradients; 0 for none.
        zones: of the continuation, whose gradients are wanted.
        closing: zones whose gradients are wanted while gates close.
    """

    window: int = 0
    entropy: frozenset[int] = frozenset()
    next_entropy: frozenset[int] = frozenset()
    surprisal: bool = False
    representation_change: bool = False
    accumulated_attention: bool = False
    query_moments: bool = False
    model: bool = False
    gradients: int = 0
    zones: frozenset[str] = frozenset()
    closing: frozenset[str] = frozenset()

    @property
    def looks_ahead(self) -> bool:
        """Whether the continuation is looked at, which only a measurement knows."""
        return bool(self.zones or self.closing)

    @property
    def head(self) -> bool:
        """Whether the context's logits are needed."""
        return bool(self.entropy or self.next_entropy) or self.surprisal

    @staticmethod
    def merge(needs: Iterable[str]) -> Needs:
        """Parse and merge needs.

        Raises:
            UsageError: an unknown signal.
        """
        window, flags = 0, set[str]()
        entropies: dict[str, set[int]] = {"entropy": set(), "next_entropy": set()}
        samples, zones, closing = 0, set[str](), set[str]()
        for need in needs:
            name, _, number = need.partition(":")
            if name not in KNOWN or (number and not number.isdigit()):
                raise UsageError(
                    f"unknown signal {need!r} in a rule's needs{did_you_mean(name, list(KNOWN))}; "
                    f"there are {', '.join(KNOWN)}"
                )
            if name == "window":
                window = max(window, int(number or DEFAULT_WINDOW))
            elif name in entropies:
                entropies[name].add(int(number or DEFAULT_TOP_K))
            elif name.startswith(GRADIENTS):
                samples = max(samples, int(number or DEFAULT_SAMPLES))
                zones.add(name.removeprefix(GRADIENTS))
            elif name.startswith(CLOSING):
                closing.add(name.removeprefix(CLOSING))
            else:
                flags.add(name)
        return Needs(
            window=window,
            entropy=frozenset(entropies["entropy"]),
            next_entropy=frozenset(entropies["next_entropy"]),
            surprisal="surprisal" in flags,
            representation_change="representation_change" in flags,
            accumulated_attention="accumulated_attention" in flags,
            query_moments="query_moments" in flags,
            model="model" in flags,
            gradients=samples,
            zones=frozenset(zones),
            closing=frozenset(closing),
        )


#: Whose uncertainty a token's predictive entropy is: about the token itself, or about what comes after it.
ALIGNMENTS = ("own", "next")


def entropy_need(top_k: int, alignment: str) -> str:
    """The need of a rule that reads `trace.entropy_of(top_k, alignment)`."""
    return f"entropy:{top_k}" if alignment == "own" else f"next_entropy:{top_k}"

"""Removing tokens from states too: whether a hybrid model's memory of a token is in its entries or in its states.

Entries leave the cache as ever. States are one tensor for all tokens, so that they are made anew: the context runs once
more, and what removed tokens would write is masked (`instrument.rebuilt_states`, which says what that leaves).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from forward_influence.errors import UsageError
from forward_influence.influence.ablation import Removal
from forward_influence.influence.full_run import Continuation
from forward_influence.instrument.cache import SelectiveCache
from forward_influence.instrument.rebuilt_states import give_rebuilt, rebuilt_states
from forward_influence.selectors.selection import Selection
from forward_influence.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class RemovalFromStates(Removal):
    """A removal after which the states hold nothing of the removed tokens either.

    Attributes:
        trace: of the context.
        removed: (n,) bool, which of its tokens.
    """

    trace: Trace
    removed: Tensor

    @property
    def runs(self) -> int:
        """The context runs again before the continuation."""
        return self.trace.n + super().runs

    def hidden(self, continuation: Continuation) -> Tensor:
        """As its effect runs, over rebuilt states."""
        trace = self.trace
        found = rebuilt_states(continuation.model.model, trace.tokens, self.removed, continuation.chunk, trace.span)

        def branch(room: int) -> SelectiveCache:
            return give_rebuilt(self.branch(room), found)

        return self.effect.hidden(continuation, branch, self.length, self.positions)


def from_states_too(removal: Removal, trace: Trace, removed: Selection) -> RemovalFromStates:
    """The same removal, from states as well.

    Args:
        removed: what leaves the cache.

    Raises:
        UsageError: layers or heads lose different tokens; a state cannot lose a part of a token.
    """
    tokens = removed.mask[0, 0]
    if not bool((removed.mask == tokens).all()):
        raise UsageError(f"{removal.label}: states lose whole tokens; choose with a rule per token (per=token)")
    return RemovalFromStates(**vars(removal), trace=trace, removed=tokens)


def require_states(kinds: Collection[str]) -> None:
    """Refuse to ablate the states of a model that has none.

    Args:
        kinds: what transformers calls the layers of its cache.

    Raises:
        UsageError: there is none.
    """
    if not any(kind.startswith("LinearAttention") for kind in kinds):
        raise UsageError("this model carries no states beside its entries; leave out `states`")

"""Which layers of a model hold entries, which can be removed, and where else a token may live on, in words."""

from __future__ import annotations

from collections.abc import Sequence

#: What the names of transformers' cache layers that carry states begin with; those that hold entries beside go on so.
_STATES, _BESIDE = "LinearAttention", "LinearAttentionAnd"
#: Layers that do not attend, or that attend over what another layer holds.
_NOTHING = "DummyLayer"


def holding(kinds: Sequence[str]) -> str:
    """What a reader of results has to know of a model with states; "" of one whose tokens are in entries only.

    Args:
        kinds: per layer, what transformers' cache calls it.

    Examples:
        >>> holding(["LinearAttentionLayer"] * 30 + ["DynamicLayer"] * 10)
        '10 of 40 layers hold entries; what is removed may live on in the states of the other 30'
    """
    stateful = sum(kind.startswith(_STATES) for kind in kinds)
    if not stateful:
        return ""
    beside = sum(kind.startswith(_BESIDE) for kind in kinds)
    entries = sum(kind != _NOTHING for kind in kinds) - (stateful - beside)
    if not beside and stateful == len(kinds) - entries:
        those = f"the other {stateful}"
    else:
        those = f"{'all ' * (stateful == len(kinds))}{stateful} layer{'s' * (stateful > 1)}"
    return f"{entries} of {len(kinds)} layers hold entries; what is removed may live on in the states of {those}"

"""Token-importance rules: the registry, and one small file per rule, under the name of its paper."""

from forward_influence.selectors.base import GRAINS, HEADS, Selector, chosen, final_scores, select
from forward_influence.selectors.explain import explained
from forward_influence.selectors.registry import discover, parse_selector, selector

__all__ = [
    "GRAINS",
    "HEADS",
    "Selector",
    "chosen",
    "discover",
    "explained",
    "final_scores",
    "parse_selector",
    "select",
    "selector",
]

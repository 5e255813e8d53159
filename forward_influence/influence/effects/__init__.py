"""What a removal is measured on, one effect a file: every module here that registers one is found by itself."""

from forward_influence.influence.effects.base import Effect
from forward_influence.influence.effects.registry import DEFAULT, TOGETHER, effect_of, effects_of, names

__all__ = ["DEFAULT", "TOGETHER", "Effect", "effect_of", "effects_of", "names"]

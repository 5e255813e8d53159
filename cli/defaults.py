"""What a command takes where something is not typed and something else is."""

from __future__ import annotations

from dataclasses import replace

from forward_influence.cli.options import Given
from forward_influence.measurement.choices import Choices


def only_compressors(choices: Choices, given: Given) -> Choices:
    """Without the default rules, where compressors are asked for and no rules."""
    return replace(choices, selectors=()) if choices.compressors and "selectors" not in given.fields else choices

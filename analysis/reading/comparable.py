"""Which runs can be compared: those that agree in what makes their numbers comparable."""

from __future__ import annotations

import json
from collections.abc import Sequence

from forward_influence.errors import UsageError
from forward_influence.measurement.choices import Choices
from forward_influence.storage.manifest import differing_fields
from forward_influence.storage.run import Run
from forward_influence.utils.configuration import options_of

#: Fields of the configuration in which runs must agree to be compared, beside the model's fingerprint.
MUST_AGREE = (*(name for name, said in options_of(Choices).items() if said.alike), "dtype")


def differences(one: Run, other: Run) -> list[str]:
    """What keeps two runs from being compared, each with both values; empty where nothing does."""
    found = []
    models = [run.manifest.get("model", {}) for run in (one, other)]
    if models[0].get("fingerprint") != models[1].get("fingerprint"):
        found.append(f"model ({_told_apart(one, other)})")
    # a continuation that the model wrote was drawn with the run's seed: with another seed it is another text
    drawn = ("seed",) if one.configuration.get("continuation_from") == "generate" else ()
    for name in (*MUST_AGREE, *drawn):
        here, there = one.configuration.get(name), other.configuration.get(name)
        if (here or None) != (there or None):  # configurations leave out what was not asked for
            shown = ["none" if value is None else json.dumps(value) for value in (here, there)]
            found.append(f"{name} ({' against '.join(shown)})")
    prints = [{d["name"]: d["fingerprint"] for d in run.documents} for run in (one, other)]
    changed = [name for name in prints[0] if name in prints[1] and prints[0][name] != prints[1][name]]
    if changed:
        found.append(f"the text of document {changed[0]!r}")
    return found


def _told_apart(one: Run, other: Run) -> str:
    """Two models by their names; of one name by their settings, and where those are equal too by their weights."""
    names = [run.manifest.get("model", {}).get("spec") for run in (one, other)]
    if names[0] != names[1]:
        return f"{names[0]} against {names[1]}"
    here, there = ({"model": run.configuration.get("model_configuration", {})} for run in (one, other))
    fields = differing_fields(here, there)
    return f"{names[0]} with {', '.join(fields)}" if fields else f"{names[0]} with other weights, adapters or code"


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in what makes their numbers comparable.

    Raises:
        UsageError: naming both runs and every field that differs, with both values.
    """
    for other in runs[1:]:
        if fields := differences(runs[0], other):
            raise UsageError(
                f"{runs[0].where} and {other.where} cannot be compared: they differ in {'; '.join(fields)}; "
                "`report` and `plot` set them side by side, or measure again with equal settings"
            )


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in groups that can be compared with one another, in the order given."""
    found: list[list[Run]] = []
    for run in runs:
        home = next((group for group in found if not any(differences(other, run) for other in group)), None)
        if home is None:
            found.append([run])
        else:
            home.append(run)
    return found

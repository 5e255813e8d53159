"""Documents that can be measured by their spans: the others are skipped before a model is loaded."""

from __future__ import annotations

from dataclasses import replace

from forward_influence.data.cutting import Prepared, Skipped
from forward_influence.errors import UsageError
from forward_influence.measurement.request import Request


def placeable(request: Request, prepared: Prepared) -> Prepared:
    """The documents whose spans leave enough candidates for the request's budgets; the others are among the skipped.

    Without spans in the request, all of them.

    Raises:
        UsageError: no document is left (the first one's reason).
    """
    if request.spans is None:
        return prepared
    taken, skipped = [], []
    for document in prepared.documents:
        try:
            request.at(document.layout)
            taken.append(document)
        except UsageError as error:
            skipped.append(Skipped(document.document.name, str(error)))
    if not taken:
        raise UsageError(f"none of {len(skipped)} documents can be measured ({skipped[0].name}: {skipped[0].reason})")
    return replace(prepared, documents=tuple(taken), skipped=(*prepared.skipped, *skipped))

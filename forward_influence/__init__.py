"""Measure which tokens of a language model's KV cache matter to the future, and judge rules for choosing them.

Example:
    >>> import forward_influence as fi
    >>> from forward_influence.data import load_documents, prepare, sample_documents
    >>> model = fi.load_model("smollm2-135m")
    >>> speeches = sample_documents(load_documents("sotu"))
    >>> documents = prepare(speeches, model.tokenizer, context=160, continuation=64, max_documents=1).documents
    >>> request = fi.Request(selectors=("entropy", "recent"), context=160, continuation=64)
    >>> run = fi.measure(model, documents, request, "runs/example")
    >>> conditions = run.curves().query("kind == 'condition'")
    >>> [(row.selector, len(row.kl), bool(row.kl.mean() > 0)) for row in conditions.itertuples()]
    [('entropy', 64, True), ('recent', 64, True)]

The same step by step, for one context and one selection:
    >>> tokens, rule = documents[0].segments[0], fi.parse_selector("entropy")
    >>> trace = fi.record(model, tokens[:160], fi.Needs.merge(rule.needs), span=224, first=4, last=96)
    >>> [influence] = fi.forward_influence(model, trace, tokens[160:], fi.select(rule, trace, 32))
    >>> influence.kl.shape, bool(abs(influence.kl.numpy() - conditions["kl"].iloc[0]).max() < 1e-6)
    (torch.Size([64]), True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from forward_influence.compression import compress
    from forward_influence.errors import ForwardInfluenceError, UsageError
    from forward_influence.influence.comparison import Influence
    from forward_influence.influence.measure import forward_influence
    from forward_influence.interactive.measuring import measure
    from forward_influence.interactive.run import Run, open_run
    from forward_influence.measurement.request import Request
    from forward_influence.models.loading import Model, load_model, wrap_model
    from forward_influence.selectors import Selector, parse_selector, select, selector
    from forward_influence.selectors.selection import Budget, Candidates, Selection
    from forward_influence.tracing.needs import Needs
    from forward_influence.tracing.recorder import record
    from forward_influence.tracing.trace import Trace

#: Public name -> the module that defines it; loaded at first use, so that `--help` does not wait for torch.
_HOMES = {
    "Budget": "selectors.selection",
    "Candidates": "selectors.selection",
    "ForwardInfluenceError": "errors",
    "Influence": "influence.comparison",
    "Model": "models.loading",
    "Needs": "tracing.needs",
    "Request": "measurement.request",
    "Run": "interactive.run",
    "Selection": "selectors.selection",
    "Selector": "selectors",
    "Trace": "tracing.trace",
    "UsageError": "errors",
    "compress": "compression",
    "forward_influence": "influence.measure",
    "load_model": "models.loading",
    "measure": "interactive.measuring",
    "open_run": "interactive.run",
    "parse_selector": "selectors",
    "record": "tracing.recorder",
    "select": "selectors",
    "selector": "selectors",
    "wrap_model": "models.loading",
}

__all__ = [
    "Budget",
    "Candidates",
    "ForwardInfluenceError",
    "Influence",
    "Model",
    "Needs",
    "Request",
    "Run",
    "Selection",
    "Selector",
    "Trace",
    "UsageError",
    "__version__",
    "compress",
    "forward_influence",
    "load_model",
    "measure",
    "open_run",
    "parse_selector",
    "record",
    "select",
    "selector",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"forward_influence.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not: what tab completion shows."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

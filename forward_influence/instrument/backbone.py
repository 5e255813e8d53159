"""The part of a model between tokens and last hidden states, found by watching which module computes them.

`base_model` does not serve: in some families it is the whole model (Llama 4) or a wrapper that never runs (OPT, BART).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from forward_influence.errors import UsageError

_paths: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def backbone(model: PreTrainedModel) -> nn.Module:
    """The module whose output the head turns into logits; it is called like the model itself.

    Raises:
        UsageError: there is none.
    """
    if model not in _paths:
        _paths[model] = _find(model)
    return model.get_submodule(_paths[model])


def _find(model: PreTrainedModel) -> str:
    """Run one token; the last of the inner models to finish contains the others that ran."""
    finished: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, a, o, path=path: finished.append(path))  # type: ignore[misc]
        for path, module in model.named_modules()
        if path and isinstance(module, PreTrainedModel)
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not finished:
        raise UsageError(f"{type(model).__name__}: which of its parts gives the last hidden states could not be found")
    return finished[-1]

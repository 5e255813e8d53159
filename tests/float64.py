"""Float64 throughout: models that compute parts of themselves in float32 (routers, norms, rotary) are kept from it.

Without this, a router's float32 rounding depends on how a text is cut into chunks, and no tolerance below 1e-6 holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Float64(TorchDispatchMode):
    """While on, conversions to float32 of float64 tensors leave them as they are, and those of positions give float64.

    Positions are int64; older versions of transformers multiply them with the rotary frequencies as float32.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = getattr(args[0] if args else None, "dtype", None)
        if kwargs.get("dtype") is torch.float32 and given in (torch.float64, torch.int64):
            kwargs = {**kwargs, "dtype": torch.float64}
        return function(*args, **kwargs)

"""Progress in a notebook: a bar below the cell; nothing where Python runs a script."""

from __future__ import annotations

import sys
from typing import Any

from forward_influence.utils.progress import Progress, Silent


class Bar:
    """Draws `tqdm.auto`'s bar, which is a widget in a notebook and a line in a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, total_tokens: int, what: str) -> None:
        """Start a bar of `total_tokens`."""
        from tqdm.auto import tqdm

        if total_tokens > 0:
            self._bar = tqdm(total=total_tokens, desc=what, unit="token", unit_scale=True, leave=False)

    def advance(self, tokens: int, what: str) -> None:
        """Move on by `tokens`."""
        if self._bar is not None:
            self._bar.set_description(what[:60], refresh=False)
            self._bar.update(tokens)

    def message(self, text: str) -> None:
        """A line above the bar."""
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def in_notebook() -> bool:
    """Whether the code runs in a notebook's kernel."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and hasattr(found, "kernel")


def default_progress() -> Progress:
    """A bar in a notebook, nothing elsewhere."""
    return Bar() if in_notebook() else Silent()

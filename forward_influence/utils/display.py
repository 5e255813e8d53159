"""How objects look in a notebook and at the prompt: one short line, never a page of weights or text."""

from __future__ import annotations

import html


class Displayed:
    """Shows itself in a notebook as its `repr`."""

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

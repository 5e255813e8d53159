"""Which instrument is on in the running thread: its attention function and the caches that need it look here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forward_influence.instrument.instrument import Instrument


class _Active(threading.local):
    instrument: Instrument | None = None


active = _Active()

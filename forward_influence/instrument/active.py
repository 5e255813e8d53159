"""Which instrument is on in the running thread: its attention function and the caches that need it look here."""

from __future__ import annotations

import threading
from typing import Any


class _Active(threading.local):
    instrument: Any = None  # an `Instrument`, whose module imports this one


active = _Active()

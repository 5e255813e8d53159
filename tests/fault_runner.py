"""A process that measures in children which can be killed: everything is imported and loaded once, then forked.

    python fault_runner.py FOLDER DOCUMENTS KILLS SEED

Kills children at random moments, each continuing the run of the one before, then lets one finish.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import tiny_data
import torch

from forward_influence.execution.run import measure
from forward_influence.measurement.request import Request


def request() -> Request:
    return Request(
        selectors=("attention:window=8", "entropy", "random"),
        budgets=("0.2",),
        context=60,
        continuation=40,
        protect_last=8,
        save_selections=True,
    )


def main(folder: str, count: int, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    model, documents = tiny_data.model(), tiny_data.documents(count, 100)
    random.seed(seed)
    parts, killed = Path(folder) / "parts", 0
    measure(model, documents[:1], request(), Path(folder).parent / "warm", chunk=16)
    while True:
        before = len(list(parts.glob("*.parquet"))) if parts.is_dir() else 0
        child = os.fork()
        if child == 0:
            measure(model, documents, request(), folder, chunk=16)
            os._exit(0)
        if killed < kills:
            time.sleep(random.uniform(0.0, 0.3))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        after = len(list(parts.glob("*.parquet"))) if parts.is_dir() else 0
        assert after >= before, "a kill lost a part"
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            break
        killed += 1
    print(killed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

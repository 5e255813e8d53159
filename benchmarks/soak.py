"""Five hundred short documents in one run: does memory, the number of open files or the time per document grow?

python benchmarks/soak.py [DOCUMENTS]    `make soak`; exits with 1 where one of them grows
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fault_runner
import psutil
import tiny_data
import torch

from forward_influence.execution.executors import LocalExecutor
from forward_influence.execution.run import measure

PART = 100
MEMORY, SPEED = 0.02, 0.25  # growth that is allowed; processor time per document varies with what else runs


class Watched(LocalExecutor):
    """Notes what the process holds after each document."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.memory: list[int] = []
        self.files: list[int] = []
        self.seconds: list[float] = []

    def run(self, *args: Any, **options: Any) -> Iterator[tuple[str, str | None]]:
        """As the local executor."""
        process = psutil.Process()
        for done in super().run(*args, **options):
            self.memory.append(process.memory_info().rss)
            self.files.append(process.num_fds())
            self.seconds.append(time.process_time())
            yield done


def main(count: int = 500) -> None:
    torch.set_num_threads(1)
    model = tiny_data.model()
    watched = Watched(model)
    with tempfile.TemporaryDirectory() as folder:
        documents = tiny_data.documents(count, 100)
        measure(model, documents, fault_runner.request(), Path(folder) / "run", executor=watched, chunk=16)
    steps = [b - a for a, b in zip(watched.seconds, watched.seconds[1:], strict=False)]
    print("documents      memory MB   open files   ms of processor time per document (median)")
    rows = []
    for start in range(0, count, PART):
        part = slice(start, start + PART)
        memory = statistics.fmean(watched.memory[part]) / 1e6
        rows.append((memory, max(watched.files[part]), statistics.median(steps[part]) * 1e3))
        print(f"{start + 1:4d} to {start + PART:4d}  {rows[-1][0]:11.2f}  {rows[-1][1]:10d}  {rows[-1][2]:10.1f}")
    (memory, files, speed), (last_memory, last_files, last_speed) = rows[1], rows[-1]
    print(f"the last hundred against the second: memory {last_memory / memory - 1:+.2%}, ", end="")
    print(f"open files {last_files - files:+d}, time {last_speed / speed - 1:+.1%}")
    flat = last_memory <= memory * (1 + MEMORY) and last_files <= files and last_speed <= speed * (1 + SPEED)
    raise SystemExit(0 if flat else 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

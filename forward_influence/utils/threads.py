"""How torch's threads share a processor: they sleep while they wait for each other, and are as many as may run.

By default a thread that has done its part of a matrix product spins until the others have done theirs. With another
process on the same cores it spins on the time that the late one needs. OpenMP reads how to wait when torch loads it, so
that all of this comes before `import torch`, which this module does not do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

#: What makes threads sleep at barriers: the standard's way, GNU's and Intel's (also LLVM's, on Macs).
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process which will load torch lacks; none of what its user has decided.

    Args:
        environment: as the process has it.
    """
    found = {} if any(name in environment for name in SLEEPING) else dict(SLEEPING)
    quota = cpu_quota()
    if quota is not None and quota < allowed_processors() and not any(name in environment for name in _COUNTS):
        found["OMP_NUM_THREADS"] = str(quota)  # OpenMP knows which processors are allowed, but not how much of them
    return found


def prepare() -> None:
    """Put the settings into this process's environment; for entry points, before they import torch."""
    if "torch" not in sys.modules:
        os.environ.update(settings(os.environ))


def start_anew() -> None:
    """The same for a script that has imported torch already: it is started again, with the settings."""
    lacking = settings(os.environ)
    if lacking:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **lacking})


def processors() -> int:
    """How many processors this process may keep busy: those it is bound to, and no more than its cgroup's quota."""
    quota = cpu_quota()
    return allowed_processors() if quota is None else min(quota, allowed_processors())


def allowed_processors() -> int:
    """How many processors this process may run on (taskset, Slurm, `docker --cpuset-cpus`)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Whole processors' worth of time that cgroups leave (`docker --cpus`, Kubernetes), at least 1; None for no limit.

    Args:
        root: where /proc and /sys are.
    """
    limits = [limit for limit in _limits(root) if limit > 0]
    return max(1, int(min(limits))) if limits else None


def _limits(root: Path) -> Iterator[float]:
    """Processors' worth of each limit of this process's cgroup and of those above it, versions 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        version2 = number == "0" and not controllers
        if not version2 and "cpu" not in controllers.split(","):
            continue
        mounts = ["sys/fs/cgroup"] if version2 else ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):  # a container sees its own group as the root
                folder = root.joinpath(mount, *parts[:depth])
                yield from _limit(folder, version2)


def _limit(folder: Path, version2: bool) -> Iterator[float]:
    try:
        if version2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except (OSError, ValueError):
        return
    if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and "-1" are none
        yield int(quota) / int(period)

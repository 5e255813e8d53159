"""How much memory is free, and amounts of it as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forward_influence.errors import UsageError

if TYPE_CHECKING:
    import torch


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, within a container's limit; None where that cannot be found out."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        import psutil

        return min([int(psutil.virtual_memory().available), *_left_in_container()])
    return None


def _left_in_container() -> list[int]:
    """Bytes left below a cgroup's limit (version 2, then 1), which Slurm and containers set; empty without one."""
    from pathlib import Path

    pairs = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
    found = []
    for limit, usage in pairs:
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, usage)]
        except OSError:
            continue
        if all(text.isdigit() for text in texts):
            found.append(max(0, int(texts[0]) - int(texts[1])))
    return found


def parse_bytes(text: str) -> int:
    """Bytes of "8GB", "500MB", "1.5GiB" or a plain number.

    Raises:
        UsageError: anything else.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
    stripped = text.strip().upper()
    number = stripped.rstrip("KMGIB")
    try:
        value = float(number) * units[stripped[len(number) :].strip()]
    except (ValueError, KeyError):
        raise UsageError(f"`memory_limit` {text} is no amount of memory; give 8GB or 500MB, say") from None
    if not 0 < value < float("inf"):
        raise UsageError(f"`memory_limit` {text} is no amount of memory; give 8GB or 500MB, say")
    return int(value)


def in_words(size: float) -> str:
    """Bytes as people read them: megabytes below a gigabyte."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"

"""Evaluation tasks that need no network: seeded generators, and the same as lm-evaluation-harness task files."""

from forward_influence.data.tasks.base import Item, Task
from forward_influence.data.tasks.registry import TASKS, parse_task

__all__ = ["TASKS", "Item", "Task", "parse_task"]

"""Threads sleep at barriers and are no more than may run: what the commands set, and what they leave to their users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_files

from forward_influence.utils import threads

LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity and GNU OpenMP are Linux's")
SPINS = "GOMP_SPINCOUNT = '300000'"


def process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, whose user has decided nothing about threads but what is given."""
    undecided = (*threads.SLEEPING, "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in undecided}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=300, check=True)


def group(root: Path, lines: str, **files: str) -> Path:
    """A /proc and a /sys with one process's cgroups; `/` in file names is written `__`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_quota_of_version_2_counts_at_every_level(tmp_path):
    files = {"slice__cpu.max": "250000 100000\n", "slice__job__cpu.max": "max 100000\n"}
    assert threads.cpu_quota(group(tmp_path / "a", "0::/slice/job\n", **files)) == 2
    files["slice__job__cpu.max"] = "50000 100000\n"
    assert threads.cpu_quota(group(tmp_path / "b", "0::/slice/job\n", **files)) == 1, "half a processor is one thread"
    assert threads.cpu_quota(group(tmp_path / "c", "0::/\n", **{"cpu.max": "800000 200000"})) == 4
    assert threads.cpu_quota(group(tmp_path / "d", "0::/../elsewhere\n", **{"cpu.max": "300000 100000"})) == 3


def test_the_quota_of_version_1(tmp_path):
    lines = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n"
    files = {"cpu__docker__x__cpu.cfs_quota_us": "300000", "cpu__docker__x__cpu.cfs_period_us": "100000"}
    assert threads.cpu_quota(group(tmp_path / "a", lines, **files)) == 3
    inside = {"cpu,cpuacct__cpu.cfs_quota_us": "200000\n", "cpu,cpuacct__cpu.cfs_period_us": "100000\n"}
    assert threads.cpu_quota(group(tmp_path / "b", lines, **inside)) == 2
    none = {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}
    assert threads.cpu_quota(group(tmp_path / "c", lines, **none)) is None


@pytest.mark.parametrize("lines", ["", "0::/\n", "nonsense", "1:name=systemd:/\n"])
def test_no_quota(lines, tmp_path):
    assert threads.cpu_quota(group(tmp_path, lines, **{"cpu.max": "max 100000"})) is None
    assert threads.cpu_quota(tmp_path / "nowhere") is None


def test_what_the_user_has_decided_is_left_alone(monkeypatch):
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert threads.settings({}) == threads.SLEEPING
    for name in threads.SLEEPING:
        assert threads.settings({name: "ACTIVE"}) == {}
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2)
    monkeypatch.setattr(threads, "allowed_processors", lambda: 64)
    assert threads.settings({}) == {**threads.SLEEPING, "OMP_NUM_THREADS": "2"}
    assert threads.processors() == 2
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert threads.settings({name: "7"}) == threads.SLEEPING
    monkeypatch.setattr(threads, "allowed_processors", lambda: 1)
    assert threads.settings({}) == threads.SLEEPING, "torch knows which processors it may use"
    assert threads.processors() == 1


def test_importing_the_library_changes_no_environment():
    code = (
        "import os; before = dict(os.environ); import forward_influence, forward_influence.execution.run, "
        "forward_influence.cli.app; assert dict(os.environ) == before"
    )
    process(code)


@LINUX
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ["GOMP_SPINCOUNT = '0'", "OMP_WAIT_POLICY = 'PASSIVE'"]),
        ({"GOMP_SPINCOUNT": "5"}, ["GOMP_SPINCOUNT = '5'"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["OMP_WAIT_POLICY = 'ACTIVE'"]),
    ],
)
def test_commands_set_it_before_torch_reads_it(given, wanted, tmp_path):
    """GNU OpenMP itself says what it read."""
    tiny_files.save_tiny(tmp_path / "model")
    code = "import sys; from forward_influence.cli.app import main; main(sys.argv[1:])"
    sizes = ["--context", "200", "--continuation", "40", "--tflops", "1"]
    said = process(code, "plan", "--model", str(tmp_path / "model"), *sizes, OMP_DISPLAY_ENV="VERBOSE", **given).stderr
    assert all(setting in said for setting in wanted), said
    assert SPINS not in said or given


@LINUX
def test_scripts_that_have_torch_already_start_anew_once():
    code = (
        "import os, sys, torch; from forward_influence.utils import threads; threads.start_anew(); "
        "print(os.environ['GOMP_SPINCOUNT'], sys.argv[1:])"
    )
    done = process(code, "an argument", "--another", OMP_DISPLAY_ENV="VERBOSE")
    assert done.stdout == "0 ['an argument', '--another']\n"
    assert done.stderr.index(SPINS) < done.stderr.index("GOMP_SPINCOUNT = '0'")
    again = process(code, OMP_DISPLAY_ENV="VERBOSE", GOMP_SPINCOUNT="7")
    assert again.stdout == "7 []\n"
    assert again.stderr.count("GOMP_SPINCOUNT") == 1


@LINUX
def test_threads_are_no_more_than_the_processors_that_may_be_used():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from forward_influence.utils import threads; threads.prepare(); import torch; "
        "print(threads.processors(), torch.get_num_threads())"
    )
    assert process(code).stdout == "1 1\n"


@LINUX
def test_a_quota_makes_torch_take_fewer_threads():
    code = (
        "from forward_influence.utils import threads; threads.cpu_quota = lambda: 1; "
        "threads.allowed_processors = lambda: 64; threads.prepare(); import torch; print(torch.get_num_threads())"
    )
    assert process(code).stdout == "1\n"

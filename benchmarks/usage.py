"""What the processes of a benchmark use, read from /proc (Linux only)."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
SERVICES = ("enroll", "planner", "aggregator", "evaluator")
KINDS = ("broker", *SERVICES, "agent", "trainer", "watchdog")


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment; memory in bytes, `peak` since the last `reset_peaks`."""

    kind: str
    cpu_s: float
    rss: int
    peak: int


@dataclass(frozen=True, slots=True)
class KindUsage:
    """All processes of one kind: the largest memory of one of them, the CPU time of all together."""

    count: int
    rss: int
    peak: int
    cpu_s: float


def snapshot() -> dict[int, Process]:
    """All processes that this one started, and what those started, by process id."""
    found = {}
    for pid in _descendants():
        # One may end in between.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
            found[pid] = _read(pid)
    return found


def reset_peaks(pids: list[int]) -> None:
    """Let the kernel count the peak memory of these processes from now on."""
    for pid in pids:
        (PROC / str(pid) / "clear_refs").write_text("5")


def compare(before: dict[int, Process], after: dict[int, Process]) -> dict[str, KindUsage]:
    """What each kind used between two snapshots.

    Raises:
        ValueError: a process ended or was started in between.
    """
    if before.keys() != after.keys():
        changed = before.keys() ^ after.keys()
        kinds = Counter((before.get(pid) or after[pid]).kind for pid in changed)
        raise ValueError(f"processes came or went in the run: {dict(kinds)}")
    groups = defaultdict(list)
    for pid, process in after.items():
        groups[process.kind].append((process, process.cpu_s - before[pid].cpu_s))
    return {
        kind: KindUsage(
            len(group),
            max(process.rss for process, _ in group),
            max(process.peak for process, _ in group),
            sum(cpu_s for _, cpu_s in group),
        )
        for kind, group in groups.items()
    }


def _descendants() -> list[int]:
    children = defaultdict(list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                children[int(_stat(int(folder.name))[1])].append(int(folder.name))
    found, open_ = [], [os.getpid()]
    while open_:
        more = children[open_.pop()]
        found += more
        open_ += more
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on: the second may contain spaces."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _read(pid: int) -> Process:
    folder = PROC / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    stat = _stat(pid)
    arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return Process(
        _kind(arguments),
        (int(stat[11]) + int(stat[12])) / TICKS,
        int(status["VmRSS"].split()[0]) * 1024,
        int(status["VmHWM"].split()[0]) * 1024,
    )


def _kind(arguments: list[str]) -> str:
    if any(Path(argument).name == "watchdog.py" for argument in arguments):
        return "watchdog"
    if "fedbus_worker.child" in arguments:
        return "trainer"
    if "fedbus_worker" in arguments:
        return "agent"
    if Path(arguments[0]).name == "nats-server":
        return "broker"
    return next((name for name in SERVICES if f"fedbus_{name}" in arguments), "other")

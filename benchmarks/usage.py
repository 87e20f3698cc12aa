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
    """One process at one moment; memory in bytes, `peak` since the last `reset_peaks`; bytes sent to disk."""

    kind: str
    cpu_s: float
    rss: int
    peak: int
    written: int


@dataclass(frozen=True, slots=True)
class KindUsage:
    """All processes of one kind: the largest memory of one of them, CPU time and bytes written of all."""

    count: int
    rss: int
    peak: int
    cpu_s: float
    written: int


def snapshot() -> dict[int, Process]:
    """All processes that this one started, and what those started, by process id."""
    found = {}
    for pid in descendants(os.getpid()):
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
        groups[process.kind].append((before[pid], process))
    return {
        kind: KindUsage(
            len(group),
            max(now.rss for _, now in group),
            max(now.peak for _, now in group),
            sum(now.cpu_s - then.cpu_s for then, now in group),
            sum(now.written - then.written for then, now in group),
        )
        for kind, group in groups.items()
    }


def descendants(root: int) -> list[int]:
    """Process ids of all that a process started, and of what those started."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                children[int(stat(int(folder.name))[1])].append(int(folder.name))
    found: list[int] = []
    open_ = [root]
    while open_:
        more = children[open_.pop()]
        found += more
        open_ += more
    return found


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on: the second may contain spaces."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _read(pid: int) -> Process:
    folder = PROC / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    fields = stat(pid)
    arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return Process(
        _kind(arguments),
        (int(fields[11]) + int(fields[12])) / TICKS,
        int(status["VmRSS"].split()[0]) * 1024,
        int(status["VmHWM"].split()[0]) * 1024,
        _written(folder),
    )


def _written(folder: Path) -> int:
    """Bytes that the kernel was told to put on a disk, whether or not it did so yet."""
    told = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    return int(told["write_bytes"]) - int(told["cancelled_write_bytes"])


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

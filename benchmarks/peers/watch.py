"""CPU time and memory of process trees, read from /proc while they run (Linux only)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from usage import PROC, TICKS, descendants, stat

PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY_S = 0.5
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Sample:
    """All trees at one moment; `cpu_s` includes processes that ended and were waited for."""

    at: float
    cpu_s: float
    memory: dict[str, int]


def look(roots: dict[str, int]) -> Sample:
    """Add up each tree, which is named and given by the process id of its root."""
    at, ticks, memory = time.time(), 0, {}
    for name, root in roots.items():
        pages = 0
        for pid in [root, *descendants(root)]:
            # One may end in between.
            with contextlib.suppress(OSError):
                fields = stat(pid)
                ticks += sum(map(int, fields[11:15]))
                pages += int(fields[21])
        memory[name] = pages * PAGE
    return Sample(at, ticks / TICKS, memory)


def cpu_between(samples: list[Sample], begin: float, end: float) -> float:
    """CPU seconds between two times, on straight lines between the samples."""
    return _cpu_at(samples, end) - _cpu_at(samples, begin)


def _cpu_at(samples: list[Sample], at: float) -> float:
    index = bisect_left(samples, at, key=lambda sample: sample.at)
    if index in (0, len(samples)):
        return samples[min(index, len(samples) - 1)].cpu_s
    before, after = samples[index - 1], samples[index]
    share = (at - before.at) / (after.at - before.at)
    return before.cpu_s + share * (after.cpu_s - before.cpu_s)


class Watch:
    """Samples in a thread until `stop`, which is called once."""

    def __init__(self, roots: dict[str, int]) -> None:
        self.samples = [look(roots)]
        self._roots = roots
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            self.samples.append(look(self._roots))

    def stop(self) -> list[Sample]:
        """Take a last sample and return all."""
        self._stopping.set()
        self._thread.join()
        self.samples.append(look(self._roots))
        return self.samples


def machine_cpu() -> tuple[float, float]:
    """CPU seconds that the whole machine was busy, and those of this process and all that it waited for."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return (user + nice + system + irq + softirq) / TICKS, sum(used.ru_utime + used.ru_stime for used in own)


def adopt_orphans() -> None:
    """Let processes whose parent ended become ours, so that nothing that was started here is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_all() -> None:
    """SIGKILL every process below this one, until none is left, and wait for each."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            if (PROC / str(pid)).exists():
                with contextlib.suppress(ChildProcessError):  # its own parent waits for it, or ends first
                    os.waitpid(pid, 0)

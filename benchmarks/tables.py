"""Results as Markdown, and their place in docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fedbus.runtime.server import find_server
from usage import KINDS, KindUsage

STAGES = (
    "opened to first accepted",
    "first to last accepted",
    "last accepted to closing",
    "closing to aggregated",
    "aggregated to finished",
    "finished to next opened",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One run of many rounds; `stages` has the seconds of each round, in the order of STAGES."""

    setting: str
    telemetry: str
    seconds: list[float]
    stages: list[list[float]]
    entries: float
    mb_in: float
    mb_out: float
    rounds: int
    usage: dict[str, KindUsage]


def render(results: Sequence[Result], command: str, date: str) -> str:
    """All tables, with the machine and the command."""
    load = f"Load average over the last 15 minutes, this benchmark included: {os.getloadavg()[2]:.1f}."
    parts = [
        f"Measured on {date} with `{command}`. {machine()} {load}",
        "**Time and traffic of a round.** Seconds from `opened` to the next `opened`; MB (1e6 bytes) that "
        "the broker received and sent per round; log entries appended per round, one after another.",
        _times(results),
        "**Where the time of a round goes.** Median seconds between entries of the log, by the time that "
        "each entry says.",
        _stages(results),
        "**Memory and CPU.** Resident memory of the largest process of a kind at the end of the run, and its "
        "peak in the run (start-up excluded), in MiB; CPU seconds per round of all processes of the kind "
        "together.",
        _usage(results),
    ]
    return "\n\n".join(parts)


def put(text: str, path: Path, name: str) -> None:
    """Replace what stands between the markers of a file.

    Args:
        text: Markdown.
        path: the file.
        name: what the markers are called: the command that writes there.

    Raises:
        ValueError: the file has no markers.
    """
    before = path.read_text()
    begin, finish = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    start, end = before.find(begin), before.find(finish)
    if not 0 <= start < end:
        raise ValueError(f"{path} has no lines {begin} and {finish}")
    path.write_text(f"{before[: start + len(begin)]}\n\n{text}\n\n{before[end:]}")


def machine() -> str:
    """The machine and what ran on it, in a sentence or two."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    version = subprocess.run([find_server(), "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"nats-server: v(\S+)", version)
    cores = len(os.sched_getaffinity(0))
    return (
        f"Machine: {cores} cores ({_processor()}), {memory:.1f} GiB of memory, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, nats-server "
        f"{found[1] if found else version.strip()}."
    )


def _processor() -> str:
    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else "unknown processor"


def _times(results: Sequence[Result]) -> str:
    head = ["setting", "telemetry", "rounds", "median s", "min s", "max s", "MB in", "MB out", "entries"]
    rows = [
        [
            each.setting,
            each.telemetry,
            str(len(each.seconds)),
            f"{median(each.seconds):.3f}",
            f"{min(each.seconds):.3f}",
            f"{max(each.seconds):.3f}",
            f"{each.mb_in:.2f}",
            f"{each.mb_out:.2f}",
            f"{each.entries:.1f}",
        ]
        for each in results
    ]
    return table(head, rows, 2)


def _stages(results: Sequence[Result]) -> str:
    rows = [
        [each.setting, each.telemetry, *(f"{median(stage):.4f}" for stage in zip(*each.stages, strict=True))]
        for each in results
    ]
    return table(["setting", "telemetry", *STAGES], rows, 2)


def _usage(results: Sequence[Result]) -> str:
    settings = list(dict.fromkeys(each.setting for each in results))
    modes = list(dict.fromkeys(each.telemetry for each in results))
    head = ["setting", "kind", "processes"]
    for mode in modes:
        head += [f"RSS ({mode})", f"peak ({mode})", f"CPU s/round ({mode})"]
    rows = []
    for setting in settings:
        those = {each.telemetry: each for each in results if each.setting == setting}
        for kind in (*KINDS, "other"):
            used = {mode: each.usage[kind] for mode, each in those.items() if kind in each.usage}
            if not used:
                continue
            row = [setting, kind, str(next(iter(used.values())).count)]
            for mode in modes:
                row += _cells(used[mode], those[mode].rounds) if mode in used else ["-"] * 3
            rows.append(row)
    return table(head, rows, 2)


def _cells(usage: KindUsage, rounds: int) -> list[str]:
    return [f"{usage.rss / 2**20:.1f}", f"{usage.peak / 2**20:.1f}", f"{usage.cpu_s / rounds:.4f}"]


def table(head: list[str], rows: list[list[str]], words: int) -> str:
    """A table that is readable as text too; all but the first `words` columns are aligned to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])

"""What runs on this machine: from /proc where there is one, else from `ps`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is not a zombie."""

    pid: int
    parent: int
    command: str


def processes() -> list[Process]:
    """All live processes that we may see."""
    if Path("/proc/self/stat").exists():
        found = (_from_proc(folder) for folder in Path("/proc").iterdir() if folder.name.isdigit())
        return [process for process in found if process]
    listing = subprocess.run(
        ["ps", "-axwwo", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True
    )
    rows = (line.split(None, 3) for line in listing.stdout.splitlines())
    return [
        Process(int(pid), int(parent), command) for pid, parent, state, command in rows if state[0] != "Z"
    ]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return any(process.pid == pid for process in processes())


def leftovers(program: str, mark: str) -> list[str]:
    """Processes running `program` that descend from this one, or whose command line contains `mark`."""
    table = {process.pid: process for process in processes()}

    def ours(process: Process | None) -> bool:
        while process and process.pid != os.getpid():
            process = table.get(process.parent)
        return process is not None

    return [
        f"{each.pid} {each.command}"
        for each in table.values()
        if program in each.command and (mark in each.command or ours(each))
    ]


def working_in(folder: Path) -> list[str]:
    """Processes that name a folder in their command line or, where /proc tells it, run in it."""

    def runs_there(process: Process) -> bool:
        try:
            return Path(f"/proc/{process.pid}/cwd").readlink().is_relative_to(folder)
        except OSError:
            return False

    return [
        f"{each.pid} {each.command}"
        for each in processes()
        if str(folder) in each.command or runs_there(each)
    ]


def _from_proc(folder: Path) -> Process | None:
    try:
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None  # it ended meanwhile
    return None if state == "Z" else Process(int(folder.name), int(parent), command)

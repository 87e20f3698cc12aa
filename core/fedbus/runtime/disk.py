"""How much of the disk the broker may fill, and what to say when others fill it.

A stream that meets a full disk stays wedged until the broker restarts, so the broker must say "full" first.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedbus.base.errors import ConfigError

GIB = 1 << 30
MOST = 64 * GIB
LEAST = GIB // 4
WATCH_S = 5.0


def storage_limit(store: Path) -> int:
    """Bytes that the streams in `store` may take: what is free and what they hold, less a reserve.

    The reserve is 5 % of the disk, at least 1 GiB; the limit is at most 64 GiB.

    Raises:
        ConfigError: less than 256 MiB would be left.
    """
    disk = shutil.disk_usage(store)
    return bound(total=disk.total, free=disk.free, held=_held(store), where=str(store))


def _held(store: Path) -> int:
    held = 0
    for folder, _, names in os.walk(store):
        for name in names:
            with suppress(FileNotFoundError):  # the broker that runs has just removed it
                held += Path(folder, name).lstat().st_blocks * 512
    return held


def bound(*, total: int, free: int, held: int, where: str) -> int:
    """The limit for a disk of `total` bytes with `free` of them free and `held` in the store."""
    limit = min(free + held - _reserve(total), MOST)
    if limit < LEAST:
        raise ConfigError(
            f"too little disk space at {where}: {free / GIB:.1f} GiB free, "
            f"{_reserve(total) / GIB:.1f} GiB reserved",
            hint="free some space, or choose another folder with --dir",
        )
    return limit


def _reserve(total: int) -> int:
    return max(GIB, total // 20)


@dataclass(frozen=True, slots=True)
class DiskNews:
    """Something to say about a disk."""

    code: str
    reason: str


class DiskWatch:
    """Says once that a disk runs low, that it is full, and that it has room again.

    One that cannot be looked at is told of, too, and counts as what it was. Low is less than half the
    reserve. Full is less than 256 MiB, so that there is room for what is under way.

    Args:
        folder: on that disk.
        then: what comes of a full one.
    """

    def __init__(self, folder: Path, then: str) -> None:
        self._folder = folder
        self._then = then
        self._code = "disk-room"
        self._unknown = False

    @property
    def full(self) -> bool:
        """Whether it was full when last looked at."""
        return self._code == "disk-full"

    def look(self) -> DiskNews | None:
        """Look at the disk; None where there is nothing new to say."""
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError as error:
            if self._unknown:
                return None
            self._unknown = True
            return DiskNews("disk-unknown", f"nobody knows how much space is free: {error}")
        self._unknown = False
        return self.judge(disk.total, disk.free)

    def judge(self, total: int, free: int) -> DiskNews | None:
        """What is new about a disk of `total` bytes with `free` of them free."""
        low, margin = _reserve(total) // 2, LEAST if self._code != "disk-room" else 0
        # On the way back more must be free, so that a disk at a threshold is not told of again and again.
        full = free < LEAST + (margin if self.full else 0)
        code = "disk-full" if full else "disk-low" if free < low + margin else "disk-room"
        if code == self._code:
            return None
        better = self.full and code == "disk-low"
        self._code = code
        has = f"{free / GIB:.2f} of {total / GIB:.1f} GiB are free in {self._folder}"
        if code == "disk-full":
            return DiskNews(code, f"{has}: {self._then}, until there is more")
        if better:
            return DiskNews(code, f"{has}: that is enough to go on, but little")
        if code == "disk-low":
            return DiskNews(code, f"{has}; below {LEAST / GIB:g} GiB {self._then}")
        return DiskNews(code, f"{has} again")


async def follow(watch: DiskWatch, tell: Callable[[DiskNews], None]) -> None:
    """Tell what is new about a disk, until cancelled."""
    while True:
        if (news := watch.look()) is not None:
            tell(news)
        await asyncio.sleep(WATCH_S)

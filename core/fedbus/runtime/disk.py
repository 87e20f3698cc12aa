"""How much of the disk the broker may fill.

A stream that meets a full disk stays wedged until the broker restarts, so the broker must say "full" first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fedbus.base.errors import ConfigError

GIB = 1 << 30
MOST = 64 * GIB
LEAST = GIB // 4


def storage_limit(store: Path) -> int:
    """Bytes that the streams in `store` may take: what is free and what they hold, less a reserve.

    The reserve is 5 % of the disk, at least 1 GiB; the limit is at most 64 GiB.

    Raises:
        ConfigError: less than 256 MiB would be left.
    """
    disk = shutil.disk_usage(store)
    held = sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
    return bound(total=disk.total, free=disk.free, held=held, where=str(store))


def bound(*, total: int, free: int, held: int, where: str) -> int:
    """The limit for a disk of `total` bytes with `free` of them free and `held` in the store."""
    reserve = max(GIB, total // 20)
    limit = min(free + held - reserve, MOST)
    if limit < LEAST:
        raise ConfigError(
            f"too little disk space at {where}: {free / GIB:.1f} GiB free, {reserve / GIB:.1f} GiB reserved",
            hint="free some space, or choose another folder with --dir",
        )
    return limit

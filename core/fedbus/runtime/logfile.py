"""Log files of processes that know nothing of them: each writes to a descriptor that it was started with."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOST_LOG_BYTES = 16_000_000


def is_long(path: Path) -> bool:
    """Whether a log should be put aside."""
    try:
        return path.stat().st_size > MOST_LOG_BYTES
    except FileNotFoundError:
        return False


def put_aside(path: Path) -> None:
    """Move the end of a log to `<name>.log.old`, in place of an older one, and let the process begin anew.

    The process keeps its descriptor, so the file is emptied and not renamed; it was opened to append. What
    is written between the reading and the emptying is lost.
    """
    end = tail(path, MOST_LOG_BYTES)
    os.truncate(path, 0)
    with suppress(OSError):  # a full disk: the log has shrunk all the same
        path.with_suffix(".log.old").write_bytes(end)


def tail(path: Path, size: int) -> bytes:
    """The last bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)

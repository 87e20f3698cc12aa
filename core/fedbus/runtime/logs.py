"""Log lines on stderr: a fixed sentence, then what it is about."""

from __future__ import annotations

import logging
import sys

from fedbus.base.errors import ConfigError
from fedbus.base.settings import variable

_ABOUT = ("run", "round", "worker", "code")
LEVELS = ("debug", "info", "warning", "error")


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{key}={getattr(record, key)}" for key in _ABOUT if hasattr(record, key))
        line = super().format(record)
        return f"{line} [{about}]" if about else line


def set_up(process: str, level: str | None = None) -> None:
    """Send this process's log to stderr.

    Args:
        process: shown on every line.
        level: debug, info, warning or error; FEDBUS_LOG, else info.

    Raises:
        ConfigError: no such level.
    """
    name = (level or variable("FEDBUS_LOG") or "info").lower()
    if name not in LEVELS:
        raise ConfigError(f"unknown log level {name!r}", hint=f"use one of {', '.join(LEVELS)}")
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Line(f"%(asctime)s %(levelname)-7s {process}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=name.upper(), handlers=[stream], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # comes with blosc2 and counts its threads

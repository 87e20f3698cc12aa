"""Log lines on stderr: a fixed sentence, then what it is about."""

from __future__ import annotations

import logging
import sys
import time

from fedbus.base.errors import ConfigError
from fedbus.base.settings import variable

_ABOUT = ("run", "round", "worker", "code")
LEVELS = ("debug", "info", "warning", "error")


class _Line(logging.Formatter):
    """`14:03:59 INFO    w1: a sentence [run=…]`, with the time of a second made once."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._second = 0
        self._time = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._time = second, time.strftime("%H:%M:%S", time.localtime(second))
        fields = record.__dict__
        about = " ".join([f"{key}={fields[key]}" for key in _ABOUT if key in fields])
        line = f"{self._time} {record.levelname:<7} {self._process}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
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
    stream.setFormatter(_Line(process))
    # What no line shows need not be found out for each.
    logging._srcfile = None  # documented: no walk through the stack
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=name.upper(), handlers=[stream], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # comes with blosc2 and counts its threads

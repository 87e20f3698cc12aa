"""A nats-server process, from its start until it listens or has said why it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fedbus.base.errors import BusUnavailable
from fedbus.runtime.logfile import tail
from fedbus.runtime.tied import Lifeline

_POLL_S = 0.005
# Half of its peak memory for no more CPU: what it caches of the last seconds' messages goes earlier.
# It takes more where it needs more; an operator's own settings win.
_MEMORY = {"GOGC": "50", "GOMEMLIMIT": "400MiB"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that accepts connections. `pid` is the nats-server, `process` the watchdog around it."""

    pid: int
    port: int
    process: subprocess.Popen[bytes]
    lifeline: Lifeline

    def end(self) -> None:
        """SIGTERM, and SIGKILL after 5 s; returns when the server is gone."""
        self.lifeline.close()
        self.process.wait()


def launch(binary: Path, home: Path, config: Path, keep: int, timeout_s: float) -> Server:
    """Start a server and wait until it listens. It ends with this process, even on SIGKILL.

    Args:
        binary: the nats-server.
        home: folder for what it says and where it says its ports.
        config: its configuration.
        keep: descriptor that the server holds for as long as it lives.
        timeout_s: how long it may take to read its streams back.

    Raises:
        BusUnavailable: it ended or did not come up; the message quotes its log.
    """
    for stale in home.glob("*.ports"):
        stale.unlink()
    lifeline = Lifeline()
    with (home / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            lifeline.wrap([binary, "-c", config, "--ports_file_dir", home]),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=(*lifeline.pass_fds, keep),
            env={**_MEMORY, **os.environ},
            # Ctrl-C on the terminal is for this process, which then stops the server in order.
            start_new_session=True,
        )
    lifeline.handed_over()
    try:
        pid, port = _await_ports(process, home, timeout_s)
    except BaseException:
        lifeline.close()
        process.wait()
        raise
    return Server(pid, port, process, lifeline)


def _await_ports(process: subprocess.Popen[bytes], home: Path, timeout_s: float) -> tuple[int, int]:
    """Process id and port of the server, which writes both into a file once it listens."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for path in home.glob("*.ports"):
            pid = re.search(r"_(\d+)\.ports$", path.name)
            try:
                addresses = json.loads(path.read_bytes())["nats"]
            except (ValueError, FileNotFoundError):
                continue  # it is being written
            if pid:
                return int(pid[1]), int(addresses[0].rpartition(":")[2])
        if process.poll() is not None:
            raise BusUnavailable(f"the broker ended at its start: {_last_words(home)}")
        time.sleep(_POLL_S)
    raise BusUnavailable(f"the broker did not come up within {timeout_s:.0f} s: {_last_words(home)}")


def _last_words(home: Path) -> str:
    lines = []
    for name in ("stderr", "log"):
        path = home / name
        lines += tail(path, 4000).decode(errors="replace").splitlines()[-20:] if path.exists() else []
    wrong = [line for line in lines if re.search(r"\[(ERR|FTL)\]|nats-server: |cannot run", line)]
    return "; ".join((wrong or lines)[-3:]) or "it said nothing"

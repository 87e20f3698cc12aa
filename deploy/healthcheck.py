"""Health check of a container: `python healthcheck.py broker|planner|enroll|evaluator|aggregator|worker`.

Exit code 0: the broker takes the operator's password; planner, enroll and evaluator answer a ping through the
broker; aggregator and worker, which answer no command, hold a connection to it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fedbus.bus import Bus
from fedbus.bus.credentials import DEFAULT_PORT
from fedbus.runtime.identity import credentials_of

_ESTABLISHED = "01"


def connected() -> bool:
    """Whether a process of this container holds a TCP connection to the broker's port."""
    rows = [
        row.split()
        for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        if path.exists()
        for row in path.read_text().splitlines()[1:]
    ]
    return any(row[2].endswith(f":{DEFAULT_PORT:04X}") and row[3] == _ESTABLISHED for row in rows)


async def answers(name: str) -> None:
    """Connect as the operator, and have a service answer.

    Args:
        name: the service's, or `broker`, for which the connection is enough.
    """
    bus = await Bus.connect(credentials_of("operator"), wait_s=3.0)
    try:
        if name != "broker":
            await bus.request(f"$SRV.PING.{name}", timeout_s=3.0)
    finally:
        await bus.close()


def main(name: str) -> None:
    """Exit with 1 and the reason, where the part is not well."""
    if name in ("aggregator", "worker"):
        sys.exit(None if connected() else "no connection to the broker")
    try:
        asyncio.run(answers(name))
    except Exception as error:
        sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])

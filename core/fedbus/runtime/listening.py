"""Where a broker is told to listen, and why it cannot."""

from __future__ import annotations

import errno
import re
import socket

from fedbus.base.errors import ConfigError
from fedbus.bus.credentials import bracketed

LOOPBACK = "127.0.0.1"


def parse_listen(listen: str) -> tuple[str, int]:
    """Read `host:port` or `host`; without a port it is 0.

    Raises:
        ConfigError: the text is something else.
    """
    parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::([0-9]{1,5}))?", listen)
    if not parts or int(parts[3] or 0) > 65535:
        raise ConfigError(
            f"cannot listen on {listen!r}: use HOST:PORT, such as {LOOPBACK}:4222 or [::1]:4222",
            hint="port 0 takes a free one",
        )
    return parts[1] or parts[2], int(parts[3] or 0)


def obstacle(host: str, port: int) -> ConfigError | None:
    """Why nobody can listen there now; None: somebody can."""
    where = f"{bracketed(host)}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return ConfigError(
            f"cannot listen on {where}: there is no host {host!r}",
            hint=f"use an address of this machine, such as {LOOPBACK}:4222, or 0.0.0.0:4222 for all of them",
        )
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return _explained(where, error)
    return None


def _explained(where: str, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"cannot listen on {where}: another process does",
            hint="stop that one, or choose another port with --listen HOST:PORT",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"cannot listen on {where}: it is no address of this machine",
            hint="use one that `ip addr` shows, or 0.0.0.0 for all of them",
        )
    return ConfigError(
        f"cannot listen on {where}: {error.strerror}", hint="choose another --listen HOST:PORT"
    )

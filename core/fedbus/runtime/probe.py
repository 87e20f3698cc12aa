"""Ask a broker whether it knows a credential, in the few lines of its protocol that this takes."""

from __future__ import annotations

import json
import socket
from enum import Enum

from fedbus.base.errors import TlsRefused
from fedbus.bus import tls
from fedbus.bus.credentials import Credentials

LINE = 64 << 10  # bytes that a line may have


class Answer(Enum):
    """What a broker makes of a credential."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    SILENT = "silent"  # nobody listens whom this may be told, or it went away


def probe(credentials: Credentials, timeout_s: float = 2.0) -> Answer:
    """Greet the broker as this party, and leave again.

    Raises:
        ConfigError: the CA cannot be read.
    """
    greeting = {"verbose": False, "user": credentials.user, "pass": credentials.password, "name": "probe"}
    try:
        with socket.create_connection((credentials.host, credentials.port), timeout_s) as plain:
            connection = plain
            lines = plain.makefile("rb")
            info = dict(json.loads(lines.readline(LINE).removeprefix(b"INFO ")))
            if tls.is_wanted(credentials, info):
                context = tls.trust(credentials.ca)
                connection = context.wrap_socket(plain, server_hostname=credentials.host)
                lines = connection.makefile("rb")
            with connection:
                connection.sendall(b"CONNECT " + json.dumps(greeting).encode() + b"\r\nPING\r\n")
                while line := lines.readline(LINE):
                    if line.startswith(b"PONG"):
                        return Answer.ACCEPTED
                    if line.startswith(b"-ERR"):
                        return Answer.REFUSED
    except (OSError, ValueError, TypeError, TlsRefused):
        return Answer.SILENT
    return Answer.SILENT

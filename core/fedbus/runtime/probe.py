"""Ask a broker whether it knows a credential, in the few lines of its protocol that this takes."""

from __future__ import annotations

import json
import socket
from enum import Enum
from urllib.parse import urlsplit

from fedbus.bus.credentials import Credentials


class Answer(Enum):
    """What a broker makes of a credential."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    SILENT = "silent"  # nobody listens, or it went away


def probe(credentials: Credentials, timeout_s: float = 2.0) -> Answer:
    """Greet the broker as this party, and leave again."""
    address = urlsplit(credentials.url)
    greeting = {"verbose": False, "user": credentials.user, "pass": credentials.password, "name": "probe"}
    try:
        with socket.create_connection((address.hostname or "", address.port or 0), timeout_s) as connection:
            lines = connection.makefile("rb")
            lines.readline()  # INFO
            connection.sendall(b"CONNECT " + json.dumps(greeting).encode() + b"\r\nPING\r\n")
            while line := lines.readline():
                if line.startswith(b"PONG"):
                    return Answer.ACCEPTED
                if line.startswith(b"-ERR"):
                    return Answer.REFUSED
    except OSError:
        return Answer.SILENT
    return Answer.SILENT

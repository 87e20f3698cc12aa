"""One POST to an OTLP/HTTP receiver. It goes where it is told: no proxy, no redirect."""

from __future__ import annotations

import http.client
from enum import Enum

from fedbus.telemetry.endpoint import Endpoint

TIMEOUT_S = 5.0
_BUSY = (408, 429, 502, 503, 504)


class Retry(Enum):
    """Whether the same request may succeed later."""

    AGAIN = True
    NEVER = False


AGAIN, NEVER = Retry.AGAIN, Retry.NEVER


def post(endpoint: Endpoint, body: bytes) -> tuple[str | None, Retry]:
    """Send a request, and wait for its answer in this thread.

    Returns:
        What went wrong, None when nothing did, and whether to try again.
    """
    kind = http.client.HTTPSConnection if endpoint.scheme == "https" else http.client.HTTPConnection
    connection = kind(endpoint.host, endpoint.port, timeout=TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/x-protobuf", "User-Agent": "fedbus", **endpoint.headers}
        connection.request("POST", endpoint.path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"cannot be reached: {error}", AGAIN
    finally:
        connection.close()
    if 200 <= status < 300:
        return None, NEVER
    return f"answered {status}", AGAIN if status in _BUSY else NEVER

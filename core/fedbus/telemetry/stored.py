"""Spans that the broker keeps in FB_TELEMETRY, read back by trace id."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial

from fedbus_schemas import subjects

from fedbus.base.errors import BusError
from fedbus.bus import Bus
from fedbus.bus.store import persist
from fedbus.telemetry.model import Span
from fedbus.telemetry.otlp import decode

_READ = f"$JS.API.DIRECT.GET.{subjects.TELEMETRY}"
_BATCH = 256
_BATCH_BYTES = 4 << 20
# Clocks of hosts and broker differ, and a worker that lost its broker sends what it has kept when it is back.
MARGIN_S = 60.0
LATER_S = 3600.0


async def read_spans(bus: Bus, trace_id: str, since: float, until: float | None = None) -> list[Span]:
    """All stored spans of one trace, cleaned, in the order of arrival.

    Args:
        bus: the connection, of a party that may read the stream.
        trace_id: which.
        since: when the round was opened, seconds since 1970.
        until: when it ended; None: it may not have.

    Raises:
        BusError: the broker does not let us read.
    """
    wanted = bytes.fromhex(trace_id)
    query: dict[str, object] = {
        "batch": _BATCH,
        "max_bytes": _BATCH_BYTES,
        "next_by_subj": subjects.ALL_TELEMETRY,
        "start_time": _iso(max(0.0, since - MARGIN_S)),
    }
    last = None if until is None else _iso(until + LATER_S)
    found: list[Span] = []
    while True:
        body = json.dumps(query).encode()
        *messages, end = await persist(bus, partial(bus.request_all, _READ, body))
        for message in messages:
            # Looked for in the raw bytes first: most messages are of other rounds, and need no parsing.
            if wanted in message.data:
                party = message.headers["Nats-Subject"].rpartition(".")[2]
                found += [span for span in decode(bytes(message.data), party) if span.trace_id == trace_id]
        if end.status == "404" or not messages:
            return found
        if end.status != "204":
            raise BusError(f"the broker answered {end.status} to a read of {subjects.TELEMETRY}")
        newest = messages[-1].headers
        if int(end.headers.get("Nats-Num-Pending", 0)) == 0:
            return found
        if last is not None and newest["Nats-Time-Stamp"][:19] > last[:19]:
            return found
        query.pop("start_time", None)
        query["seq"] = int(newest["Nats-Sequence"]) + 1


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

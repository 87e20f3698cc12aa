"""A real OTLP/HTTP receiver, and what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """One span as the receiver sees it."""

    name: str
    service: str
    instance: str
    pid: int
    trace_id: str
    span_id: str
    parent_id: str
    start: int  # nanoseconds
    end: int
    attributes: dict[str, Any]
    error: str | None


class Receiver:
    """Keeps what was posted. `answers` are the status codes of the next answers; then it is 200."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[int] = []
        self.posts: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def spans(self) -> list[Received]:
        """All spans of all requests, in order."""
        return [span for _, _, body in list(self.posts) for span in _read(body)]

    def of(self, trace_id: str) -> list[Received]:
        """Spans of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Listen on a free port of this machine."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = found.answers.pop(0) if found.answers else 200
            if status == 200:
                found.posts.append((self.path, dict(self.headers), body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _read(body: bytes) -> Iterator[Received]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        who = _pairs(group.resource.attributes)
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Received(
                span.name,
                who["service.name"],
                who["service.instance.id"],
                who["process.pid"],
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                _pairs(span.attributes),
                span.status.message if span.status.code == 2 else None,
            )


def _pairs(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}

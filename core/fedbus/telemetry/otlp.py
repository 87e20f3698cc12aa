"""Spans as OTLP bytes (ExportTraceServiceRequest), and back. What is read was written by anyone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from fedbus.bus.provision import TELEMETRY_BYTES
from fedbus.telemetry.allowed import ATTRIBUTES, MOST_EVENTS, cleaned
from fedbus.telemetry.model import Span, SpanEvent, Value

# Nothing larger is stored or parsed. Parsing a message of this size takes a few milliseconds at most.
MOST_BYTES = TELEMETRY_BYTES
MOST_SPANS = 512
_MOST_PAIRS = 64


def encode(spans: Sequence[Span]) -> bytes:
    """One request that holds all of the spans."""
    request = ExportTraceServiceRequest()
    for (service, worker, pid), own in groupby(spans, key=lambda s: (s.service, s.worker, s.pid)):
        group = request.resource_spans.add(
            resource=Resource(
                attributes=_pairs(
                    {
                        "service.name": f"fedbus-{service}",
                        "service.instance.id": worker or service,
                        "process.pid": pid,
                    }
                )
            )
        )
        scope = group.scope_spans.add()
        scope.scope.name = "fedbus"
        scope.spans.extend(_written(span) for span in own)
    data: bytes = request.SerializeToString()
    return data


def encode_in_parts(spans: Sequence[Span], most_bytes: int = MOST_BYTES) -> Iterator[bytes]:
    """As few requests as keep below a size; a span that is larger by itself is left out."""
    if not spans:
        return
    data = encode(spans)
    if len(data) <= most_bytes and len(spans) <= MOST_SPANS:
        yield data
    elif len(spans) > 1:
        yield from encode_in_parts(spans[: len(spans) // 2], most_bytes)
        yield from encode_in_parts(spans[len(spans) // 2 :], most_bytes)


def decode(data: bytes, party: str) -> list[Span]:
    """What may be kept of a request; nothing where it is too large or is not one.

    Args:
        data: the bytes.
        party: who published them, by the subject that the broker checked.
    """
    if len(data) > MOST_BYTES:
        return []
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return []
    found = (cleaned(span, party) for span in _read_all(request))
    return [span for span in found if span is not None]


def _written(span: Span) -> pb.Span:
    failed = span.error is not None
    return pb.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        name=span.name,
        kind=pb.Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=_nanoseconds(span.start),
        end_time_unix_nano=_nanoseconds(span.end),
        attributes=_pairs(span.attributes),
        events=[
            pb.Span.Event(name=e.name, time_unix_nano=_nanoseconds(e.at), attributes=_pairs(e.attributes))
            for e in span.events
        ],
        status=pb.Status(
            code=pb.Status.STATUS_CODE_ERROR if failed else pb.Status.STATUS_CODE_OK, message=span.error or ""
        ),
    )


def _nanoseconds(at: float) -> int:
    # Not at * 1e9, which has more digits than a float: the same time comes back.
    seconds, rest = divmod(at, 1.0)
    return int(seconds) * 10**9 + round(rest * 1e9)


def _pairs(attributes: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in attributes.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(double_value=value)


def _read_all(request: ExportTraceServiceRequest) -> Iterator[Span]:
    count = 0
    for group in request.resource_spans[:MOST_SPANS]:
        pid = _read_pairs(group.resource.attributes, ("process.pid",)).get("process.pid", 0)
        for scope in group.scope_spans[:MOST_SPANS]:
            for span in scope.spans:
                count += 1
                if count > MOST_SPANS:
                    return
                if len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.span_id):
                    yield _read(span, pid if isinstance(pid, int) else 0)


def _read(span: pb.Span, pid: int) -> Span:
    failed = span.status.code == pb.Status.STATUS_CODE_ERROR
    return Span(
        name=span.name,
        service="",
        worker=None,
        pid=pid,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() if len(span.parent_span_id) == 8 else None,
        start=span.start_time_unix_nano / 10**9,
        end=span.end_time_unix_nano / 10**9,
        attributes=_read_pairs(span.attributes, ATTRIBUTES),
        events=tuple(
            SpanEvent(e.name, e.time_unix_nano / 10**9, _read_pairs(e.attributes, ATTRIBUTES))
            for e in span.events[:MOST_EVENTS]
        ),
        error=(span.status.message or "failed") if failed else None,
    )


def _read_pairs(pairs: Sequence[KeyValue], wanted: Iterable[str]) -> dict[str, Value]:
    names = frozenset(wanted)
    found: dict[str, Value] = {}
    for pair in pairs[:_MOST_PAIRS]:
        kind = pair.value.WhichOneof("value")
        if pair.key in names and kind in ("string_value", "int_value", "double_value"):
            found[pair.key] = getattr(pair.value, kind)
    return found

"""Spans on the wire: they come back whole, and what anyone else wrote is cleaned or dropped."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from fedbus.telemetry.allowed import ATTRIBUTES, MOST_EVENTS, MOST_TEXT, NAMES, clean_attributes
from fedbus.telemetry.model import Span, SpanEvent
from fedbus.telemetry.otlp import MOST_BYTES, MOST_SPANS, decode, encode, encode_in_parts
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TASK = Span(
    "task",
    "worker",
    "w1",
    4711,
    "a" * 32,
    "b" * 16,
    "c" * 16,
    1_700_000_000.25,
    1_700_000_001.5,
    {"worker": "w1", "bytes": 100},
    (SpanEvent("chunk", 1_700_000_000.5, {"chunk": 1}),),
)
ROOT = replace(TASK, name="round", service="planner", worker=None, parent_id=None, attributes={"run": "r"})


def changed(**changes: Any) -> list[Span]:
    return decode(encode([replace(TASK, **changes)]), "w1")


def test_a_span_comes_back_as_it_went() -> None:
    assert decode(encode([TASK]), "w1") == [TASK]
    failed = replace(TASK, error="out of memory")
    assert decode(encode([TASK, failed]), "w1") == [TASK, failed]
    assert decode(encode([ROOT]), "planner") == [ROOT]


def test_a_resource_says_who_it_was() -> None:
    request = ExportTraceServiceRequest.FromString(encode([TASK, TASK, ROOT]))
    said = [{a.key: a.value for a in group.resource.attributes} for group in request.resource_spans]
    assert [s["service.name"].string_value for s in said] == ["fedbus-worker", "fedbus-planner"]
    assert [s["service.instance.id"].string_value for s in said] == ["w1", "planner"]
    assert said[0]["process.pid"].int_value == 4711
    assert len(request.resource_spans[0].scope_spans[0].spans) == 2


def test_who_made_it_is_who_published_it() -> None:
    forged = replace(TASK, worker="w2", attributes={"worker": "w2"})
    (found,) = decode(encode([forged]), "w1")
    assert (found.service, found.worker, found.attributes) == ("worker", "w1", {"worker": "w1"})
    # An aggregator's span is about a worker: that is not who made it.
    verify = replace(TASK, name="verify", attributes={"worker": "w2"})
    (found,) = decode(encode([verify]), "aggregator")
    assert (found.service, found.worker, found.attributes) == ("aggregator", None, {"worker": "w2"})


@pytest.mark.parametrize("name", sorted({n for names in NAMES.values() for n in names} | {"anything", ""}))
@pytest.mark.parametrize("party", ["w1", "planner", "aggregator", "evaluator", "enroll"])
def test_each_kind_of_party_has_its_names(name: str, party: str) -> None:
    parent = None if name == "round" else "c" * 16
    found = decode(encode([replace(TASK, name=name, parent_id=parent)]), party)
    assert bool(found) == (name in NAMES.get(party, NAMES["worker"]))


def test_attributes_that_are_not_on_the_list_are_left_out() -> None:
    said = {"bytes": 1, "patient": "Jane Doe", "host.name": "clinic-7", "file": "/data/x"}
    (found,) = changed(attributes=said, events=(SpanEvent("chunk", TASK.start, dict(said)),))
    assert found.attributes == {"bytes": 1}
    assert found.events[0].attributes == {"bytes": 1}
    assert changed(events=(SpanEvent("exception", TASK.start, {}),))[0].events == ()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"reason": "x" * 5000}, {"reason": "x" * MOST_TEXT}),
        ({"reason": "\x1b[2Jgone\nnext\u202e"}, {"reason": " [2Jgone next "}),
        ({"bytes": "many"}, {}),
        ({"reason": 5}, {}),
        ({"bytes": 1.5}, {"bytes": 1}),
        ({"bytes": math.nan}, {}),
        ({"bytes": math.inf}, {}),
        ({"bytes": 1 << 60}, {}),
        ({"bytes": -5}, {"bytes": -5}),
    ],
)
def test_values_are_of_their_type_and_bounded(said: dict[str, Any], kept: dict[str, Any]) -> None:
    assert clean_attributes(said) == kept


@pytest.mark.parametrize(
    "changes",
    [
        {"trace_id": "ab"},
        {"span_id": "0" * 16},
        {"span_id": ""},
        {"parent_id": None},
        {"start": 2e9, "end": 1e9},
        {"end": 1.5e10},
    ],
)
def test_spans_that_cannot_be_are_dropped(changes: dict[str, Any]) -> None:
    assert changed(**changes) == []


def test_a_planner_that_hangs_its_root_somewhere_is_not_believed() -> None:
    assert decode(encode([replace(ROOT, parent_id="c" * 16)]), "planner") == []


def test_events_and_spans_are_bounded() -> None:
    events = tuple(SpanEvent("chunk", TASK.start, {"chunk": i}) for i in range(3 * MOST_EVENTS))
    (found,) = changed(events=events)
    assert len(found.events) == MOST_EVENTS
    small = replace(TASK, events=(), attributes={})
    assert len(decode(encode([small] * (MOST_SPANS + 50)), "w1")) == MOST_SPANS


def test_what_is_too_large_is_not_parsed() -> None:
    data = encode([TASK] * 3000)
    assert len(data) > MOST_BYTES
    assert decode(data, "w1") == []


def test_many_spans_go_in_parts_that_are_read_again() -> None:
    spans = [replace(TASK, span_id=f"{i + 1:016x}") for i in range(3000)]
    parts = list(encode_in_parts(spans))
    assert all(len(part) <= MOST_BYTES for part in parts)
    assert [span for part in parts for span in decode(part, "w1")] == spans
    assert list(encode_in_parts([])) == []
    assert list(encode_in_parts([TASK], most_bytes=10)) == []


@given(st.binary(max_size=2000))
def test_junk_is_no_span(data: bytes) -> None:
    for span in decode(data, "w1"):
        assert span.name in NAMES["worker"]


@given(st.binary(max_size=40), st.integers(0, 200))
def test_damaged_requests_do_no_harm(noise: bytes, at: int) -> None:
    sound = encode([TASK, TASK])
    for span in decode(sound[:at] + noise + sound[at + len(noise) :], "w1"):
        assert (span.service, span.worker) == ("worker", "w1")
        assert set(span.attributes) <= set(ATTRIBUTES)

"""The NATS protocol without a socket: any cut of the stream gives the same messages; lies are refused."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import pytest
from fedbus.bus import wire
from hypothesis import given
from hypothesis import strategies as st


class Got(NamedTuple):
    sid: int
    subject: str
    reply: str
    block: bytes
    data: bytes


class Heard:
    """A reader that keeps what it is told."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.messages: list[Got] = []
        self.controls: list[tuple[bytes, bytes]] = []
        self.reader = wire.Reader(self._message, lambda *told: self.controls.append(told), limit)

    def _message(self, sid: int, subject: str, reply: str, block: bytes, data: wire.Payload) -> None:
        self.messages.append(Got(sid, subject, reply, block, bytes(data)))

    def feed(self, stream: bytes, cuts: list[int]) -> None:
        """Give it the stream in pieces, each as large as its buffer takes and the next cut allows."""
        at, turn = 0, 0
        while at < len(stream):
            room = self.reader.buffer()
            assert len(room) > 0
            size = min(len(room), len(stream) - at, max(1, cuts[turn % len(cuts)]))
            room[:size] = stream[at : at + size]
            self.reader.received(size)
            at, turn = at + size, turn + 1


def sent(message: Got) -> bytes:
    """As a broker would send it."""
    words = [message.subject, str(message.sid), *([message.reply] if message.reply else [])]
    if not message.block:
        return " ".join(["MSG", *words, str(len(message.data))]).encode() + b"\r\n" + message.data + b"\r\n"
    sizes = [str(len(message.block)), str(len(message.block) + len(message.data))]
    return " ".join(["HMSG", *words, *sizes]).encode() + b"\r\n" + message.block + message.data + b"\r\n"


BLOCKS = st.sampled_from(
    [b"", wire.header_block({"a": "b"}), wire.header_block({"long": "x" * (2 * wire.LONG_HEADERS)})]
)
SIZES = st.sampled_from([0, 1, 100, wire.LARGE - 1, wire.LARGE, wire.LARGE + 1, wire.BUFFER, 200_000])
MESSAGES = st.builds(
    lambda sid, reply, block, size, fill: Got(sid, f"fb.s.{sid}", reply, block, bytes([fill]) * size),
    st.integers(1, 99),
    st.sampled_from(["", "_INBOX_w.r.1"]),
    BLOCKS,
    SIZES,
    st.integers(0, 255),
)
CUTS = st.lists(st.sampled_from([1, 2, 7, 1000, wire.LARGE, 1 << 20]), min_size=1, max_size=8)


@given(st.lists(MESSAGES, max_size=6), CUTS)
def test_any_cut_gives_the_same_messages(messages: list[Got], cuts: list[int]) -> None:
    if sum(len(message.data) for message in messages) > 50_000:
        cuts = [max(cut, 500) for cut in cuts]  # byte by byte would take seconds
    heard = Heard()
    heard.feed(b"PING\r\n" + b"PONG\r\n".join(sent(message) for message in messages), cuts)
    assert heard.messages == messages
    assert [verb for verb, _ in heard.controls] == [b"PING"] + [b"PONG"] * max(0, len(messages) - 1)


def test_what_the_broker_says_beside_messages() -> None:
    heard = Heard()
    heard.feed(b"INFO {\"a\": 1}\r\n+OK\r\nping\r\n-ERR 'Stale Connection'\r\n", [5])
    assert heard.controls == [
        (b"INFO", b'{"a": 1}'),
        (b"+OK", b""),
        (b"PING", b""),
        (b"-ERR", b"'Stale Connection'"),
    ]


def test_what_comes_behind_a_line_can_be_cut_off() -> None:
    """Behind a greeting that begins TLS nothing in clear text counts."""
    rest = b""

    def control(verb: bytes, _: bytes) -> None:
        nonlocal rest
        assert verb == b"INFO"
        rest = reader.take_rest()

    reader = wire.Reader(lambda *_: pytest.fail("a message"), control)
    stream = b"INFO {}\r\n-ERR 'no'\r\nMSG a 1 2\r\nhi\r\n"
    reader.buffer()[: len(stream)] = stream
    reader.received(len(stream))
    assert rest == stream.removeprefix(b"INFO {}\r\n")
    assert len(reader.buffer()) == wire.BUFFER


@pytest.mark.parametrize(
    "line",
    [
        "MSG fb.s 1",
        "MSG fb.s one 3",
        "MSG fb.s 1 -3",
        "MSG fb.s 1 many",
        "HMSG fb.s 1 9 3",
        "HMSG fb.s 1 -9 3",
        "HMSG fb.s 1 3",
    ],
)
def test_a_lie_is_refused_before_memory_is_taken(line: str) -> None:
    with pytest.raises(wire.ProtocolError):
        Heard(limit=1000).feed(line.encode() + b"\r\nabc\r\n", [1 << 20])


def test_a_message_above_the_limit_is_passed_over_and_told() -> None:
    heard = Heard(limit=1000)
    for size in (1001, 100_000):
        heard.feed(f"MSG fb.s 7 r.1 {size}\r\n".encode() + bytes(size) + b"\r\nMSG fb.s 8 2\r\nok\r\n", [997])
    passed = Got(7, "fb.s", "r.1", wire.TOO_LARGE, b"")
    assert heard.messages == [passed, Got(8, "fb.s", "", b"", b"ok")] * 2
    assert wire.parse_headers(wire.TOO_LARGE)["Status"] == "413"


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(wire.ProtocolError, match="without end"):
        Heard().feed(b"INFO " + b"x" * (2 * wire.BUFFER), [4096])


@given(st.binary(max_size=300), CUTS)
def test_nonsense_is_taken_or_refused_and_nothing_else(stream: bytes, cuts: list[int]) -> None:
    heard = Heard(limit=1000)
    with suppress(wire.ProtocolError):
        heard.feed(stream, cuts)
    assert all(len(message.data) <= 1000 for message in heard.messages)


@pytest.mark.parametrize(
    ("subject", "seen"),
    [(b"fb.\xff\xfe", "fb.\ufffd\ufffd"), (b"fb.a\x0b7", "fb.a\x0b7"), (b"fb.a\x0c7", "fb.a\x0c7")],
)
def test_a_subject_of_any_bytes_is_one_word(subject: bytes, seen: str) -> None:
    """The broker passes on what a peer calls its subjects: it must not look like another message."""
    heard = Heard()
    heard.feed(b"MSG " + subject + b" 3 " + subject + b" 1\r\nx\r\nMSG fb.s 4 1\r\ny\r\n", [1 << 20])
    assert heard.messages == [Got(3, seen, seen, b"", b"x"), Got(4, "fb.s", "", b"", b"y")]


def test_headers_are_read() -> None:
    assert wire.parse_headers(b"") == {}
    assert wire.parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    told = wire.parse_headers(b"NATS/1.0 404 Message Not Found\r\nA: b: c \r\n\r\n")
    assert told == {"Status": "404", "Description": "Message Not Found", "A": "b: c"}


def test_the_last_of_two_headers_counts() -> None:
    """The broker adds its own behind what an author forged."""
    block = b"NATS/1.0\r\nNats-Subject: forged\r\nNats-Subject: true\r\n\r\n"
    assert wire.parse_headers(block)["Nats-Subject"] == "true"


@given(st.binary(max_size=200))
def test_no_header_block_stops_a_reader(block: bytes) -> None:
    assert isinstance(wire.parse_headers(block), dict)


@given(
    st.dictionaries(
        st.text("abcXYZ-", min_size=1).filter(lambda name: name not in ("Status", "Description")),
        st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs", "Cc")), max_size=20),
        min_size=1,
    )
)
def test_headers_come_back_as_they_were_given(headers: dict[str, str]) -> None:
    wanted = {name: value.strip() for name, value in headers.items()}
    assert wire.parse_headers(wire.header_block(headers)) == wanted


def test_requests_are_lines() -> None:
    assert wire.publish("a.b", 3) == b"PUB a.b 3\r\n"
    assert wire.publish("a.b", 3, "r.1") == b"PUB a.b r.1 3\r\n"
    assert wire.publish("a", 3, "", {"k": "v"}) == b"HPUB a 18 21\r\nNATS/1.0\r\nk: v\r\n\r\n"
    assert wire.subscribe("a.>", 7) == b"SUB a.> 7\r\n"
    assert wire.subscribe("a.>", 7, "q") == b"SUB a.> q 7\r\n"
    assert wire.unsubscribe(7) == b"UNSUB 7\r\n"
    assert wire.connect({"a": True}) == b'CONNECT {"a": true}\r\n'


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a\t"])
def test_a_subject_cannot_smuggle_a_line(subject: str) -> None:
    with pytest.raises(ValueError, match="no subject"):
        wire.publish(subject, 0)
    with pytest.raises(ValueError, match="no subject"):
        wire.subscribe(subject, 1)
    if subject:
        with pytest.raises(ValueError, match="no subject"):
            wire.publish("a", 0, subject)


@pytest.mark.parametrize("header", [("a b", "c"), ("a:", "c"), ("", "c"), ("a", "b\r\nc: d"), ("a", "b\n")])
def test_a_header_cannot_smuggle_a_line(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        wire.publish("a", 0, "", dict([header]))

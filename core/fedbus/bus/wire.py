"""The NATS client protocol without I/O: received bytes become messages, requests become bytes.

Spec: docs.nats.io, "NATS Client Protocol", and ADR-4 for headers. A small message is cut out of
one buffer that is used again and again; a large payload is received straight into its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fedbus_schemas.base import Payload

OnMessage = Callable[[int, str, str, bytes, Payload], None]
OnControl = Callable[[bytes, bytes], None]

BUFFER = 160 << 10
# Clients may send max_payload at most, 1 MiB by default; the broker's own answers are longer at times.
MOST_BYTES = 64 << 20
LARGE = (
    128 << 10
)  # from here on a payload has a buffer of its own; to receive in parts costs more than a copy
LONG_HEADERS = 4 << 10  # headers above this are received with the payload, and cut off afterwards
END = b"\r\n"
PING, PONG = b"PING\r\n", b"PONG\r\n"
VERSION = b"NATS/1.0"
TOO_LARGE = VERSION + b" 413 Too Large" + END + END  # in the place of a message above the limit
_SPACE = re.compile(r"\s")
_WORD = re.compile(rb"[^ \t]+")  # to the broker, other white space is a part of a subject
_LINE_BREAK = re.compile(r"[\r\n]")
_MSG, _HMSG = ord("M"), ord("H")


class ProtocolError(Exception):
    """The peer does not speak the protocol, or sends more than it may."""


class Reader:
    """Parses what a broker sends. Write into `buffer()`, then tell `received` how much.

    Args:
        on_message: called with subscription id, subject, reply subject, header block and payload.
        on_control: called with a verb, such as `PING`, and the rest of its line.
        limit: bytes of headers and payload that one message may have; a longer one becomes a status, 413.
    """

    def __init__(self, on_message: OnMessage, on_control: OnControl, limit: int = MOST_BYTES) -> None:
        self.limit = limit
        self._on_message = on_message
        self._on_control = on_control
        self._head = bytearray(BUFFER)
        self._view = memoryview(self._head)
        self._start = self._end = 0
        self._skip = 0  # bytes of a line end still to come
        self._large: _Large | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._large is not None:
            return self._large.room()
        if BUFFER - self._end < LARGE and self._start:
            left = self._end - self._start
            self._head[:left] = self._head[self._start : self._end]
            self._start, self._end = 0, left
        return self._view[self._end :]

    def take_rest(self) -> bytes:
        """Cut off, while a line is being told, what came behind it; nobody reads it here any more."""
        rest = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        return rest

    def received(self, count: int) -> None:
        """So many bytes were written into `buffer()`.

        Raises:
            ProtocolError: they are not NATS; the connection is of no use any more.
        """
        if self._large is None:
            self._end += count
        else:
            self._large.filled += count
            self._finish_large()
        try:
            while self._start < self._end and self._step():
                pass
        except (ValueError, IndexError) as error:
            raise ProtocolError(f"unreadable line: {error}") from error
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end - self._start == BUFFER:
            raise ProtocolError("a line without end")

    def _step(self) -> bool:
        """Take one thing from the buffer; False when more bytes are needed."""
        if self._skip:
            passed = min(self._skip, self._end - self._start)
            self._skip -= passed
            self._start += passed
            return True
        stop = self._head.find(END, self._start, self._end)
        if stop < 0:
            return False
        verb = self._head[self._start]
        if verb in (_MSG, _HMSG):
            return self._message(stop, verb == _HMSG)
        word, _, rest = bytes(self._view[self._start : stop]).partition(b" ")
        self._start = stop + 2
        self._on_control(word.upper(), rest)
        return True

    def _message(self, stop: int, has_headers: bool) -> bool:
        """`MSG subject sid [reply] size` or `HMSG subject sid [reply] header-size size`."""
        words = _WORD.findall(bytes(self._view[self._start : stop]))
        replies = len(words) - (5 if has_headers else 4)
        if replies not in (0, 1):
            raise ProtocolError(f"a message line of {len(words)} words")
        total = int(words[-1])
        headers = int(words[-2]) if has_headers else 0
        if not 0 <= headers <= total:
            raise ProtocolError(f"a message of {total} bytes, {headers} of them headers")
        # The broker takes any bytes for a subject. Whatever a peer wrote there, it must not stop a reader.
        reply = words[3].decode(errors="replace") if replies else ""
        subject, sid, begin = words[1].decode(errors="replace"), int(words[2]), stop + 2
        have = self._end - begin
        if total > self.limit:
            # Passed over: to end the connection would only have the same come again on the next one.
            self._start, self._skip = begin, total + 2
            self._on_message(sid, subject, reply, TOO_LARGE, b"")
            return True
        if total - headers < LARGE and headers <= LONG_HEADERS:
            if have < total + 2:
                return False
            cut, last = begin + headers, begin + total
            block, payload = bytes(self._view[begin:cut]), bytes(self._view[cut:last])
            self._start = last + 2
            self._on_message(sid, subject, reply, block, payload)
            return True
        apart = headers <= LONG_HEADERS
        if apart and have < headers:
            return False
        first = begin + headers if apart else begin
        block = bytes(self._view[begin:first])
        self._large = large = _Large(sid, subject, reply, block, total - len(block), headers - len(block))
        large.filled = min(large.size, self._end - first)
        large.view[: large.filled] = self._view[first : first + large.filled]
        self._start = first + large.filled
        self._finish_large()
        return True

    def _finish_large(self) -> None:
        large = self._large
        if large is None or large.filled < large.size:
            return
        self._large, self._skip = None, 2
        self._on_message(large.sid, large.subject, large.reply, *large.parts())


class _Large:
    """A message whose payload is being received into a buffer of its own."""

    def __init__(self, sid: int, subject: str, reply: str, block: bytes, size: int, headers: int) -> None:
        self.sid, self.subject, self.reply = sid, subject, reply
        self.size = size
        self.filled = 0
        self._block = block
        self._headers = headers  # bytes of headers that lead the buffer: only where they are very long
        self._buffer = bytearray(size)
        self.view = memoryview(self._buffer)

    def room(self) -> memoryview:
        return self.view[self.filled :]

    def parts(self) -> tuple[bytes, Payload]:
        if self._headers:
            return bytes(self.view[: self._headers]), bytes(self.view[self._headers :])
        return self._block, self._buffer


def parse_headers(block: bytes) -> dict[str, str]:
    """Headers of a message, the last where a name repeats; a status line gives `Status` and `Description`.

    The broker adds its own behind those of the author, so a forged `Nats-Subject` loses.
    """
    if not block:
        return {}
    # Whatever an author wrote there, it must not stop a reader.
    first, *lines = block.decode(errors="replace").split("\r\n")
    found: dict[str, str] = {}
    status, _, description = first[len(VERSION) :].strip().partition(" ")
    if status:
        found["Status"] = status
    if description:
        found["Description"] = description.strip()
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


def connect(options: Mapping[str, Any]) -> bytes:
    """The first line of a client."""
    return b"CONNECT " + json.dumps(dict(options)).encode() + END


def subscribe(subject: str, sid: int, queue: str = "") -> bytes:
    """Ask for messages; with a queue name, each goes to one of those that share it."""
    return " ".join(filter(None, ("SUB", _checked(subject), queue, str(sid)))).encode() + END


def unsubscribe(sid: int) -> bytes:
    """End a subscription."""
    return f"UNSUB {sid}\r\n".encode()


def publish(subject: str, size: int, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """What goes before a payload of `size` bytes; `END` goes after it.

    Raises:
        ValueError: the subject, the reply subject or a header would break the line.
    """
    to = f"{_checked(subject)} {_checked(reply)}" if reply else _checked(subject)
    if not headers:
        return f"PUB {to} {size}\r\n".encode()
    block = header_block(headers)
    return f"HPUB {to} {len(block)} {len(block) + size}\r\n".encode() + block


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent.

    Raises:
        ValueError: one would break its line.
    """
    for name, value in headers.items():
        if not name or _SPACE.search(name) or ":" in name or _LINE_BREAK.search(value):
            raise ValueError(f"a header cannot be {name!r}: {value!r}")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return VERSION + END + lines.encode() + END


def _checked(subject: str) -> str:
    if not subject or _SPACE.search(subject):
        raise ValueError(f"{subject!r} is no subject")
    return subject

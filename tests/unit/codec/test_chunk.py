"""The frame around a codec's body: what it refuses, and in which order."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused, DigestMismatch
from fedbus.codec import Vector, codec, codecs
from fedbus.codec.chunk import chunk_digest, codec_for, decode_chunk, encode_chunk, max_chunk_bytes
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid, Span
from fedbus_schemas.update import ChunkHeader, TensorSpec

SPAN = Span(1, "lossy", 3000, 1500)
X = np.random.default_rng(1).standard_normal(1500).astype(np.float32)
FIELDS: dict[str, Any] = {"codec": "dense", "offset": 3000, "count": 1500, "blosc": False}


def _decode(data: bytes, name: str = "dense", span: Span = SPAN, digest: str | None = None) -> Vector:
    out = np.empty(span.count, np.float32)
    decode_chunk(data, digest or chunk_digest(data), span, name, codec(name), out)
    return out


def _frame(header: bytes, body: bytes = X.tobytes(), length: int | None = None) -> bytes:
    return struct.pack("<H", len(header) if length is None else length) + header + body


@pytest.mark.parametrize("name", codecs.names())
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_comes_back(name: str, kind: type) -> None:
    out = _decode(kind(encode_chunk(SPAN, X, name, codec(name))), name)
    assert (np.abs(out - X) <= codec(name).bound(X)).all()


def test_the_frame_is_what_the_design_says() -> None:
    data = encode_chunk(SPAN, X, "dense", codec("dense"))
    (length,) = struct.unpack_from("<H", data)
    assert ChunkHeader(**msgpack.unpackb(data[2 : 2 + length])) == ChunkHeader(**FIELDS)
    assert data[2 + length :] == X.astype("<f4").tobytes()
    assert data == _frame(msgpack.packb(FIELDS))


def test_every_chunk_of_a_model_comes_back_in_its_place() -> None:
    table = [
        TensorSpec(name="w", shape=(CHUNK_ELEMENTS + 77,), dtype="float32"),
        TensorSpec(name="mean", shape=(33,), dtype="float32", group="exact"),
    ]
    grid = Grid.of(table)
    flat = np.random.default_rng(2).standard_normal(grid.size).astype(np.float32)
    out = np.zeros_like(flat)
    for span in grid.spans:
        name, place = codec_for(span, "int8"), slice(span.offset, span.end)
        data = encode_chunk(span, flat[place], name, codec(name))
        decode_chunk(data, chunk_digest(data), span, name, codec(name), out[place])
    assert [codec_for(span, "int8") for span in grid.spans] == ["int8", "int8", "dense"]
    np.testing.assert_array_equal(out[-33:], flat[-33:])
    assert 0 < np.abs(out[:-33] - flat[:-33]).max() < 0.03


def test_a_swapped_chunk_is_refused_though_its_digest_is_listed() -> None:
    other = Span(0, "lossy", 1500, 1500)
    data = encode_chunk(other, X, "dense", codec("dense"))
    with pytest.raises(ChunkRefused, match="1500 elements from 1500; chunk 1 has 1500 from 3000"):
        _decode(data)


@pytest.mark.parametrize(("sent", "planned"), [("bf16", "dense"), ("dense", "int8"), ("int8", "bf16")])
def test_another_codec_than_the_plans_is_refused(sent: str, planned: str) -> None:
    with pytest.raises(ChunkRefused, match=f"codec is {sent}, the plan says {planned}"):
        _decode(encode_chunk(SPAN, X, sent, codec(sent)), planned)


def test_size_comes_before_digest_and_digest_before_header() -> None:
    limit = max_chunk_bytes(SPAN)
    assert limit == 6000 + 4096
    with pytest.raises(ChunkRefused, match=f"{limit + 1} bytes"):
        _decode(bytes(limit + 1), digest="0" * 64)
    with pytest.raises(DigestMismatch, match="chunk 1"):
        _decode(bytes(limit), digest="0" * 64)
    with pytest.raises(ChunkRefused, match="header"):
        _decode(bytes(limit))


def test_one_flipped_bit_is_a_digest_mismatch() -> None:
    data = encode_chunk(SPAN, X, "dense", codec("dense"))
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(DigestMismatch):
        _decode(flipped, digest=chunk_digest(data))


def _without(key: str) -> dict[str, Any]:
    return {k: v for k, v in FIELDS.items() if k != key}


NESTED = b"\x81\xa1a" * 300 + b"\xc0"
HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "header"),
    "one byte": (b"\x00", "header"),
    "length beyond the chunk": (_frame(b"\x80", b"", 900), "header of 900 bytes"),
    "length beyond the limit": (_frame(bytes(1025)), "at most 1024"),
    "no map": (_frame(msgpack.packb(7)), "header: "),
    "a list": (_frame(msgpack.packb([1, 2])), "msgpack"),
    "trailing bytes": (_frame(msgpack.packb(FIELDS) + b"\0"), "msgpack"),
    "cut short": (_frame(msgpack.packb(FIELDS)[:-1]), "msgpack"),
    "not UTF-8": (_frame(b"\x81\xa2\xff\xfe\x01"), "msgpack"),
    "never a type": (_frame(b"\xc1"), "msgpack"),
    "deeply nested": (_frame(NESTED), "header"),
    "extension": (_frame(msgpack.packb(FIELDS | {"offset": msgpack.ExtType(5, b"abc")})), "msgpack"),
    "empty extension": (
        _frame(msgpack.packb(FIELDS | {"offset": msgpack.ExtType(5, b"")})),
        "header: offset",
    ),
    "time stamp": (_frame(msgpack.packb(FIELDS | {"offset": msgpack.Timestamp(1)})), "msgpack"),
    "number as key": (_frame(msgpack.packb(FIELDS | {5: 1}, strict_types=True)), "msgpack"),
    "long text": (_frame(msgpack.packb(FIELDS | {"codec": "d" * 65})), "msgpack"),
    "binary": (_frame(msgpack.packb(FIELDS | {"codec": b"dense"})), "msgpack"),
    "unknown key": (_frame(msgpack.packb(_without("blosc") | {"bolsc": True})), "did you mean 'blosc'"),
    "one key more": (_frame(msgpack.packb(FIELDS | {"extra": 1})), "msgpack"),
    "missing key": (_frame(msgpack.packb(_without("count"))), "count"),
    "number as text": (_frame(msgpack.packb(FIELDS | {"count": "1500"})), "count"),
    "number as float": (_frame(msgpack.packb(FIELDS | {"count": 1500.0})), "count"),
    "number as flag": (_frame(msgpack.packb(FIELDS | {"count": True})), "count"),
    "negative offset": (_frame(msgpack.packb(FIELDS | {"offset": -3000})), "offset"),
    "subject in a name": (_frame(msgpack.packb(FIELDS | {"codec": "fb.>"})), "codec"),
    "count lies": (_frame(msgpack.packb(FIELDS | {"count": 1499})), "1499 elements"),
    "count is huge": (_frame(msgpack.packb(FIELDS | {"count": 2**64 - 1})), "elements from 3000"),
    "offset lies": (_frame(msgpack.packb(FIELDS | {"offset": 0})), "1500 elements from 0"),
    "flag lies": (_frame(msgpack.packb(FIELDS | {"blosc": True})), "dense: marked as compressed"),
    "body too short": (_frame(msgpack.packb(FIELDS), X.tobytes()[:-1]), "5999 bytes"),
    "body too long": (_frame(msgpack.packb(FIELDS), X.tobytes() + b"\0"), "6001 bytes"),
    "no body": (_frame(msgpack.packb(FIELDS), b""), "0 bytes"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_lies_is_refused_for_that_reason(lie: str) -> None:
    data, reason = HEADERS[lie]
    with pytest.raises(ChunkRefused, match=reason):
        _decode(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x = X.copy()
    x[-1] = value
    with pytest.raises(ChunkRefused, match="non-finite"):
        _decode(encode_chunk(SPAN, x, "dense", codec("dense")))


def test_large_finite_values_are_not_taken_for_infinite() -> None:
    x = np.full(1500, np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(_decode(encode_chunk(SPAN, x, "dense", codec("dense"))), x)


def test_a_vector_of_another_length_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="1499 elements for a span of 1500"):
        encode_chunk(SPAN, X[:-1], "dense", codec("dense"))
    data = encode_chunk(SPAN, X, "dense", codec("dense"))
    for out in (np.empty(1499, np.float32), np.empty(3000, np.float32)[::2]):
        with pytest.raises(ValueError, match="contiguous vector of 1500"):
            decode_chunk(data, chunk_digest(data), SPAN, "dense", codec("dense"), out)

"""The chunk: one span of a vector as it travels.

Two bytes of header length (little-endian), a msgpack `ChunkHeader`, the codec's body.
Nothing in it is believed: the digest comes from the manifest, the place from the grid, the
codec from the plan, and each is checked before what follows it is read.

All functions are pure and may run in any thread; hashing and blosc2 release the GIL.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import msgpack
from fedbus_schemas.base import Payload
from fedbus_schemas.update import ChunkHeader
from pydantic import ValidationError

from fedbus.base.errors import ChunkRefused, DigestMismatch, describe
from fedbus.codec import Codec, Vector
from fedbus.codec.extent import peak
from fedbus.codec.grid import Span

# What a chunk may weigh beyond its raw float32 values: header, scales, and a codec's own tables.
ALLOWANCE_BYTES = 4096
MAX_HEADER_BYTES = 1024
_LENGTH = struct.Struct("<H")


def codec_for(span: Span, name: str) -> str:
    """Name of the codec of a span under a plan's codec: exact tensors always travel dense."""
    return "dense" if span.group == "exact" else name


def max_chunk_bytes(span: Span) -> int:
    """The most that a chunk of this span may weigh, whatever its codec."""
    return 4 * span.count + ALLOWANCE_BYTES


def chunk_digest(data: Payload | memoryview) -> str:
    """SHA-256 in hex: what a manifest lists and a model chunk's subject carries."""
    return hashlib.sha256(data).hexdigest()


def encode_chunk(span: Span, x: Vector, name: str, codec: Codec) -> bytes:
    """Write one chunk.

    Values that are not finite are written as such, so that the receiver refuses them by name.

    Args:
        span: the chunk's place.
        x: its values, contiguous, `span.count` long.
        name: the codec's name, from `codec_for`.
        codec: that codec.
    """
    if len(x) != span.count:
        raise ValueError(f"{len(x)} elements for a span of {span.count}")
    return join_chunk(span, name, *codec.encode(x))


def join_chunk(span: Span, name: str, body: bytes | memoryview, blosc: bool) -> bytes:
    """One chunk of what its codec made.

    Args:
        span: the chunk's place.
        name: the codec's.
        body: of its `encode`.
        blosc: the flag that came with it.
    """
    header = ChunkHeader(codec=name, offset=span.offset, count=span.count, blosc=blosc)
    packed: bytes = msgpack.packb(header.model_dump())
    return b"".join((_LENGTH.pack(len(packed)), packed, body))


def decode_chunk(
    data: Payload | memoryview, digest: str, span: Span, name: str, codec: Codec, out: Vector
) -> float:
    """Verify and decode one chunk.

    Args:
        data: what was received.
        digest: SHA-256 that the manifest lists for this chunk.
        span: the place that the grid gives it.
        name: the codec it must have, from `codec_for`.
        codec: that codec.
        out: where to, contiguous, `span.count` long; its content is undefined after an error.

    Returns:
        The largest magnitude in it.

    Raises:
        DigestMismatch: these are not the bytes that the manifest names.
        ChunkRefused: too large, a wrong or lying header, a body the codec refuses, or non-finite values.
    """
    if len(out) != span.count or not out.flags.c_contiguous:
        raise ValueError(f"the destination is not a contiguous vector of {span.count} elements")
    view = memoryview(data).cast("B")
    if len(view) > max_chunk_bytes(span):
        raise ChunkRefused(f"{len(view)} bytes for {span.count} elements; at most {max_chunk_bytes(span)}")
    if (actual := chunk_digest(view)) != digest:
        raise DigestMismatch(f"chunk {span.index}: SHA-256 is {actual}, the manifest says {digest}")
    header, body = _split(view)
    if header.codec != name:
        raise ChunkRefused(f"codec is {header.codec}, the plan says {name}")
    if (header.offset, header.count) != (span.offset, span.count):
        raise ChunkRefused(
            f"{header.count} elements from {header.offset}; "
            f"chunk {span.index} has {span.count} from {span.offset}"
        )
    codec.decode(body, header.blosc, out)
    largest = peak(out)
    if not math.isfinite(largest):
        raise ChunkRefused("non-finite values")
    return largest


def _split(view: memoryview) -> tuple[ChunkHeader, memoryview]:
    """The header, validated, and the body."""
    if len(view) < _LENGTH.size:
        raise ChunkRefused("no header")
    (length,) = _LENGTH.unpack_from(view)
    end = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or end > len(view):
        raise ChunkRefused(f"header of {length} bytes in a chunk of {len(view)}; at most {MAX_HEADER_BYTES}")
    try:
        fields: Any = msgpack.unpackb(
            view[_LENGTH.size : end],
            raw=False,
            strict_map_key=True,
            max_str_len=64,
            max_bin_len=0,
            max_array_len=0,
            max_map_len=len(ChunkHeader.model_fields),
            max_ext_len=0,
        )
        return ChunkHeader.model_validate(fields, strict=True), view[end:]
    except ValidationError as error:
        raise ChunkRefused(f"header: {describe(error, ChunkHeader.model_fields)}") from error
    except ValueError as error:  # every error of unpackb is one
        raise ChunkRefused("header is not msgpack") from error

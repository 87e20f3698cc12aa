"""The chunks of one vector: lossy spans through the plan's codec, exact ones always dense."""

from __future__ import annotations

from typing import Any

from fedbus_schemas.base import Payload

from fedbus.codec import Vector, codec
from fedbus.codec.chunk import codec_for, decode_chunk, encode_chunk
from fedbus.codec.grid import Span


class Framing:
    """Encodes and decodes chunks. Holds no state between calls, so threads may share it.

    Args:
        name: the plan's codec.
        params: its parameters; decoding needs none.
    """

    def __init__(self, name: str, params: dict[str, Any] | None = None) -> None:
        self.name = name
        self._codecs = {"dense": codec("dense"), name: codec(name, params)}

    def encode(self, span: Span, x: Vector) -> bytes:
        """One span's values as the bytes of its chunk."""
        name = codec_for(span, self.name)
        return encode_chunk(span, x, name, self._codecs[name])

    def is_exact(self, span: Span) -> bool:
        """Whether a span's values come back bit for bit."""
        return codec_for(span, self.name) == "dense"

    def decode(self, data: Payload, digest: str, span: Span, out: Vector) -> None:
        """A chunk's bytes into `out`, which has the span's length.

        Raises:
            ChunkRefused, DigestMismatch: the bytes are not what they must be.
        """
        name = codec_for(span, self.name)
        decode_chunk(data, digest, span, name, self._codecs[name], out)

"""The chunks of one vector: lossy spans through the plan's codec, exact ones always dense."""

from __future__ import annotations

from typing import Any

import numpy as np
from fedbus_schemas.base import Payload
from fedbus_schemas.plan import Named
from fedbus_schemas.update import UpdateManifest

from fedbus.base.errors import ChunkRefused
from fedbus.codec import Subtracting, Vector, codec
from fedbus.codec.chunk import chunk_digest, codec_for, decode_chunk, encode_chunk, join_chunk
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

    @property
    def feedback(self) -> bool:
        """Whether what an encoding lost shall be added to the next update's values."""
        return self._codecs[self.name].feedback

    def encode(self, span: Span, x: Vector) -> bytes:
        """One span's values as the bytes of its chunk."""
        name = codec_for(span, self.name)
        return encode_chunk(span, x, name, self._codecs[name])

    def is_exact(self, span: Span) -> bool:
        """Whether a span's values come back bit for bit."""
        return codec_for(span, self.name) == "dense"

    def encode_and_subtract(self, span: Span, x: Vector, scratch: Vector) -> bytes:
        """One span's values as the bytes of its chunk; what `x` then holds is what the receiver lacks.

        Args:
            span: the chunk's place.
            x: its values. Of values that are not finite nothing is left: the receiver refuses them.
            scratch: at least as long.
        """
        made = self._codecs[codec_for(span, self.name)]
        if isinstance(made, Subtracting):
            return join_chunk(span, self.name, *made.encode_and_subtract(x))
        data = self.encode(span, x)
        got = scratch[: len(x)]
        try:
            self.decode(data, chunk_digest(data), span, got)
        except ChunkRefused:
            x[:] = 0
        else:
            np.subtract(x, got, out=x)
        return data

    def decode(self, data: Payload, digest: str, span: Span, out: Vector) -> float:
        """A chunk's bytes into `out`, which has the span's length; returns the largest magnitude in it.

        Raises:
            ChunkRefused, DigestMismatch: the bytes are not what they must be.
        """
        name = codec_for(span, self.name)
        return decode_chunk(data, digest, span, name, self._codecs[name], out)


def up_codec(planned: Named, base: str | None) -> Named:
    """The codec of a round's updates: the plan's for differences; whole first weights travel as they are.

    Args:
        planned: of the plan.
        base: model that the updates are differences to; None in the round that makes the first.
    """
    return planned if base else Named(name="dense")


def sends_deltas(planned: Named) -> bool:
    """Whether models travel as differences to the one before: where the plan's codec has error feedback.

    Args:
        planned: the plan's codec of models.
    """
    return Framing(planned.name, planned.params).feedback


def down_codec(planned: Named, whole: bool) -> Named:
    """The codec of a model's chunks: the plan's, but of a whole model among differences, which is exact.

    Args:
        planned: of the plan.
        whole: the model travels whole.
    """
    return Named(name="dense") if whole and sends_deltas(planned) else planned


def framing_of(manifest: UpdateManifest, planned: Named) -> Framing:
    """What decodes an update whose manifest was found good.

    Args:
        manifest: names its codec, which the worker chose where the plan says `auto`.
        planned: of the plan.
    """
    return Framing(manifest.codec, planned.params if planned.name == manifest.codec else None)

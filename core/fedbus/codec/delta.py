"""A model as a difference to its parent: one float32 addition for each element, the same bits everywhere.

Who makes a model and who downloads it call `add_delta`, and the manifest has the digests of what comes out:
a machine that adds otherwise finds out. Exact tensors travel as values, since the difference of two floats
is rounded, and what it is added to would not be exact any more.
"""

from __future__ import annotations

import numpy as np
from fedbus_schemas.base import Payload

from fedbus.base.errors import ChunkRefused, DigestMismatch
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Span


def add_delta(
    framing: Framing, data: Payload, digest: str, span: Span, values: Vector, scratch: Vector
) -> None:
    """Make the parent's values of one span the model's.

    Args:
        framing: of the model's codec.
        data: the model's chunk.
        digest: that its manifest lists for it.
        span: the place.
        values: of the parent, and then of the model.
        scratch: at least as long.

    Raises:
        ChunkRefused, DigestMismatch: the chunk is not what it must be.
    """
    if span.group == "exact":
        framing.decode(data, digest, span, values)
        return
    difference = scratch[: span.count]
    framing.decode(data, digest, span, difference)
    with np.errstate(over="ignore"):  # `check_values` refuses it
        np.add(values, difference, out=values)


def seal_delta(framing: Framing, span: Span, change: Vector, values: Vector, scratch: Vector) -> bytes:
    """Encode the change of one span of a model.

    Args:
        framing: of the codec of differences.
        span: the place.
        change: what to add to the parent's values, and then what of it was lost: nothing of an exact span.
        values: of the parent, and then of the model, as whoever downloads it will have them.
        scratch: at least as long.

    Returns:
        The bytes of the chunk.

    Raises:
        ChunkRefused: a value is not finite.
    """
    if span.group == "exact":
        values += change
        change[:] = 0
        data = framing.encode(span, values)
    else:
        data = framing.encode(span, change)
        add_delta(framing, data, chunk_digest(data), span, values, scratch)
        change -= scratch[: span.count]
    _refuse_infinite(values)
    return data


def values_digest(values: Vector) -> str:
    """SHA-256 of a span's values, in hex: what the manifest of a difference lists."""
    return chunk_digest(values.data)


def check_values(values: Vector, digest: str, span: Span) -> None:
    """Compare a span of a model with its manifest.

    Raises:
        DigestMismatch: the parent was another, or this machine adds otherwise.
        ChunkRefused: these are its values, and one is not finite.
    """
    if (actual := values_digest(values)) != digest:
        said = f"the sum's SHA-256 is {actual}, the manifest says {digest}"
        raise DigestMismatch(f"chunk {span.index}: {said}")
    _refuse_infinite(values)


def _refuse_infinite(values: Vector) -> None:
    if not np.isfinite(values).all():
        raise ChunkRefused("non-finite values")

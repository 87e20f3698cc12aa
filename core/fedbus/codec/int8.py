"""`int8`: blocks of 1,024 elements, each with its own scale. The safe default: 4.1 to 4.5 times fewer bytes.

Body: one float32 scale per block (little-endian, max|x| / 127), then one int8 code per
element, through blosc2 where that pays. Rounding is to nearest: it has half the error of
stochastic rounding, and needs no seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbus.base.errors import ChunkRefused
from fedbus.codec import Vector, codecs
from fedbus.codec.blosc import pack, unpack

BLOCK = 1024
_SCALE = np.dtype("<f4")
_CODE = np.dtype(np.int8)
# Below it 1/scale overflows; residuals of error feedback decay to such values.
_SMALLEST = np.float32(1e-30)
# The largest scale for which 127 * scale does not round to infinity.
_LARGEST = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))


@codecs.register
class Int8:
    """Block-scaled int8, stateless."""

    name: ClassVar[str] = "int8"
    feedback: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False

    def encode(self, x: Vector) -> tuple[bytes, bool]:
        """Quantise; a block that holds NaN or an infinity gets a scale that `decode` refuses."""
        scales = np.empty(_blocks(len(x)), _SCALE)
        codes = np.empty(len(x), _CODE)
        scratch = np.empty(len(x), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for block, work, code, scale in _rows(scales, x, scratch, codes):
                np.abs(block, out=work).max(axis=1, out=scale)
                scale /= 127
                scale[scale < _SMALLEST] = 0
                np.minimum(scale, _LARGEST, out=scale, where=np.isfinite(scale))
                inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
                np.multiply(block, inverse[:, None], out=work)
                np.rint(work, out=work)
                np.copyto(code, work, casting="unsafe")
        packed, blosc = pack(codes, "bits")
        return scales.tobytes() + packed, blosc

    def decode(self, body: memoryview, blosc: bool, out: Vector) -> None:
        """Multiply codes by their block's scale.

        Raises:
            ChunkRefused: a length is wrong, or a scale or code is none that `encode` writes.
        """
        head = _SCALE.itemsize * _blocks(len(out))
        if len(body) < head:
            raise ChunkRefused(f"int8: {len(body)} bytes cannot hold the scales of {len(out)} elements")
        scales = np.frombuffer(body[:head], _SCALE)
        if not ((scales >= 0) & (scales <= _LARGEST)).all():
            raise ChunkRefused("int8: a scale is negative or non-finite")
        codes = unpack(body[head:], blosc, _CODE, len(out))
        if codes.min() < -127:
            raise ChunkRefused("int8: a code is out of range")
        for values, code, scale in _rows(scales, out, codes):
            values[...] = code
            values *= scale[:, None]

    def bound(self, x: Vector) -> NDArray[np.float64]:
        """Largest error per element: half a step, max|x| / 254 of its block, and float32 rounding.

        A block whose scale would be under 1e-30 becomes zero.
        """
        starts = np.arange(0, len(x), BLOCK)
        peak = np.maximum.reduceat(np.abs(x, dtype=np.float64), starts)
        error = np.where(peak < 127.001 * float(_SMALLEST), peak, peak / 254 * (1 + 1e-4))
        return np.repeat(error, BLOCK)[: len(x)]


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _rows(scales: NDArray[Any], *flat: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Views of equally long vectors, a block per row, and their scales: whole blocks, then the short one."""
    whole = len(flat[0]) // BLOCK
    cut = whole * BLOCK
    if whole:
        yield (*(vector[:cut].reshape(whole, BLOCK) for vector in flat), scales[:whole])
    if cut < len(flat[0]):
        yield (*(vector[cut:].reshape(1, -1) for vector in flat), scales[whole:])

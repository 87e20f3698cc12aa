"""`ecq`: one step for the whole chunk, int8 codes, ZSTD as the entropy coder. 20 to 90 times fewer bytes.

Body: the step (float32, little-endian), then one int8 code per element, bit-shuffled and
through blosc2 where that pays. The step is a multiple of the chunk's root mean square, so
that most codes are zero and bits go where the energy is. What is lost is large: it needs
error feedback.
"""

from __future__ import annotations

import math
import struct
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedbus.base.errors import ChunkRefused
from fedbus.codec import Vector, codecs
from fedbus.codec.blosc import pack, unpack
from fedbus.codec.extent import SMALLEST, peak, rms

_STEP = struct.Struct("<f")
_CODE = np.dtype(np.int8)
_MOST = 127  # the largest code
_FLOAT_MAX = float(np.finfo(np.float32).max)
# Elements that are quantised at a time: they stay in the processor's cache.
_TILE = 16_384


@codecs.register
class ECQ:
    """Entropy-coded uniform quantisation."""

    name: ClassVar[str] = "ecq"
    unbiased: ClassVar[bool] = False

    class Params(BaseModel):
        """Its section of the plan."""

        model_config = ConfigDict(frozen=True, extra="forbid")
        # Beyond 6 almost no value is half a step, and what is lost grows faster than it is sent.
        step: float = Field(
            2.0, ge=0.05, le=6, description="in root mean squares; 4 for thin links, 2 or less after Adam"
        )
        error_feedback: bool = Field(True, description="add what was lost to the next update")

    def __init__(self, params: Params) -> None:
        self.feedback = params.error_feedback
        self._step = params.step

    def encode(self, x: Vector) -> tuple[bytes, bool]:
        """Quantise to nearest; a chunk that holds NaN or an infinity gets a step that `decode` refuses."""
        return self._encode(x, subtract=False)

    def encode_and_subtract(self, x: Vector) -> tuple[bytes, bool]:
        """The same; `x` is left with what `decode` will lack: nothing where `decode` refuses it."""
        return self._encode(x, subtract=True)

    def _encode(self, x: Vector, subtract: bool) -> tuple[bytes, bool]:
        step = np.float32(self._step_of(x))
        codes = np.zeros(len(x), _CODE)
        if 0 < step < np.inf:
            _quantise(x, step, codes, subtract)
        elif subtract and step != 0:
            x[:] = 0
        packed, blosc = pack(codes, "bits")
        return _STEP.pack(step) + packed, blosc

    def decode(self, body: memoryview, blosc: bool, out: Vector) -> None:
        """Multiply the codes by the step.

        Raises:
            ChunkRefused: a length is wrong, or the step or a code is none that `encode` writes.
        """
        if len(body) < _STEP.size:
            raise ChunkRefused(f"ecq: {len(body)} bytes cannot hold a step")
        (step,) = _STEP.unpack_from(body)
        if not 0 <= step < math.inf:
            raise ChunkRefused("ecq: the step is negative or non-finite")
        codes = unpack(body[_STEP.size :], blosc, _CODE, len(out))
        largest = max(int(codes.max()), -int(codes.min()))
        if largest > _MOST or largest * step > _FLOAT_MAX:
            raise ChunkRefused("ecq: a code is out of range")
        out[:] = codes
        out *= np.float32(step)

    def bound(self, x: Vector) -> NDArray[np.float64]:
        """Largest error per element: half a step and float32 rounding; all of a chunk under 1e-30."""
        step = self._step_of(x)
        error = step / 2 * (1 + 1e-4) if step else float(peak(x))
        return np.full(len(x), error)

    def _step_of(self, x: Vector) -> float:
        """The plan's multiple of the root mean square, within what int8 codes can express."""
        largest = peak(x)
        if not math.isfinite(largest):
            return math.nan
        if largest < SMALLEST:
            return 0.0
        if largest > _FLOAT_MAX / 2:
            return largest  # a multiple of anything less could round to infinity
        # No more than the largest value, or nothing would ever be sent of values that are alike.
        return max(min(self._step * rms(x, largest), largest), largest / _MOST)


def _quantise(x: Vector, step: np.float32, codes: NDArray[np.int8], subtract: bool) -> None:
    scratch = np.empty(min(len(x), _TILE), np.float32)
    inverse = np.float32(1) / step
    for start in range(0, len(x), _TILE):
        values = x[start : start + _TILE]
        work = scratch[: len(values)]
        np.multiply(values, inverse, out=work)
        np.rint(work, out=work)
        np.copyto(codes[start : start + _TILE], work, casting="unsafe")
        if subtract:
            work *= step  # as `decode` does it: the same bits
            values -= work

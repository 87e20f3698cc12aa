"""Codecs: how a span of float32 values becomes bytes and back. Pure; one file each.

A codec is found by its `name` (the registry), configured by its pydantic `Params`, and
run through the laws of tests/unit/codec.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedbus.base.registry import Registry

Vector = NDArray[np.float32]


class Codec(Protocol):
    """Encodes and decodes the body of one chunk.

    `decode` is given the element count that the grid allows and a destination of
    exactly that length; it trusts nothing in the body.
    """

    name: ClassVar[str]

    @property
    def feedback(self) -> bool:
        """Whether what an encoding lost shall be added to the next one's values: error feedback.

        For codecs whose error is large or biased. The worker keeps what was lost.
        """
        ...

    @property
    def unbiased(self) -> bool:
        """Whether the error has the mean zero, so that it averages out over many updates."""
        ...

    def encode(self, x: Vector) -> tuple[bytes | memoryview, bool]:
        """Encode a contiguous float32 vector; the flag says whether codes went through blosc2.

        Where the bytes are those of `x`, they may be a view of it.
        """
        ...

    def decode(self, body: memoryview, blosc: bool, out: Vector) -> None:
        """Decode into `out`.

        Raises:
            ChunkRefused: the body is not exactly what this codec writes for `len(out)` elements.
        """
        ...

    def bound(self, x: Vector) -> NDArray[np.float64]:
        """Largest absolute error of each element after a round trip of finite `x`; the laws check it."""
        ...


codecs: Registry[Codec] = Registry("codecs", "fedbus.codec")


def codec(name: str, params: dict[str, Any] | None = None) -> Codec:
    """Make a codec by name.

    Raises:
        UnknownName: no such codec.
        PlanRefused: wrong parameters.
    """
    return codecs.build(name, params or {})

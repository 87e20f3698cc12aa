"""The codecs that the laws are checked on."""

from __future__ import annotations

from typing import Any

from fedbus.codec import Codec, Vector, codecs

# Each codec as it is, an outside package's too, and ours at the ends of their range.
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in codecs.names()} | {
    "ecq-fine": ("ecq", {"step": 0.05}),
    "ecq-coarse": ("ecq", {"step": 6}),
    "topk-sign": ("topk", {"values": "sign"}),
    "topk-many": ("topk", {"fraction": 0.25}),
    "eden-2": ("eden", {"bits": 2}),
    "eden-4": ("eden", {"bits": 4}),
    "topk-few": ("topk", {"fraction": 0.005}),
}


def made_of(case: str) -> Codec:
    """The codec of a case."""
    return codecs.build(*CASES[case])


def encoded(made: Codec, x: Vector) -> tuple[bytes, bool]:
    """A body as it is once it is framed, also where the codec gives a view of the values."""
    body, blosc = made.encode(x)
    return bytes(body), blosc

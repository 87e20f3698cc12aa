"""What the lossy codecs do to single values, against slow and obvious arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused
from fedbus.codec import Vector, codec


def _decoded(name: str, x: Vector) -> Vector:
    body, blosc = codec(name).encode(x)
    out = np.empty_like(x)
    codec(name).decode(memoryview(body), blosc, out)
    return out


def _nearest_even(value: np.float32) -> float:
    """The nearer of the two bfloat16 values around a finite one; the even one of equally near."""
    low = int(value.view(np.uint32)) & 0xFFFF_0000
    below, above = (float(np.uint32(bits).view(np.float32)) for bits in (low, low + 0x1_0000))
    to_below, to_above = abs(float(value) - below), abs(above - float(value))
    if np.isinf(above):
        return below  # the largest stay finite
    if to_below == to_above:
        return below if low & 0x1_0000 == 0 else above
    return below if to_below < to_above else above


def test_bf16_rounds_to_nearest_even_in_every_binade() -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 20_000, np.uint32)
    around_ties = np.array([0, 0x7FFF, 0x8000, 0x8001], np.uint32)
    bits[::2] = (bits[::2] & 0xFFFF_0000) | rng.choice(around_ties, 10_000)
    x = bits.view(np.float32)
    x = np.ascontiguousarray(x[np.isfinite(x)])
    np.testing.assert_array_equal(_decoded("bf16", x), np.array([_nearest_even(v) for v in x], np.float32))


def test_bf16_keeps_infinities_zeros_and_nan_and_saturates_the_largest() -> None:
    largest = np.finfo(np.float32).max
    x = np.array([np.inf, -np.inf, 0.0, -0.0, largest, -largest, 1.5], np.float32)
    out = _decoded("bf16", x)
    np.testing.assert_array_equal(out[[0, 1, 2, 3, 6]], x[[0, 1, 2, 3, 6]])
    np.testing.assert_array_equal(np.signbit(out), np.signbit(x))
    assert np.isfinite(out[4:6]).all()
    nans = np.array([0x7F80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFF80_0001, 0x7FC0_0000], np.uint32)
    assert np.isnan(_decoded("bf16", nans.view(np.float32))).all()


def test_int8_rounds_to_nearest_with_one_scale_for_each_block() -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal(2500) * np.repeat([1e-6, 1.0, 1e6], [1024, 1024, 452])).astype(np.float32)
    out = _decoded("int8", x)
    for start in (0, 1024, 2048):
        block = x[start : start + 1024].astype(np.float64)
        step = np.abs(block).max() / 127
        codes = out[start : start + 1024] / step
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(block - out[start : start + 1024]).max() <= step / 2 * 1.0001
        assert np.rint(np.abs(codes)).max() == 127


def test_int8_takes_a_vanishing_block_for_zero_and_leaves_its_neighbour_alone() -> None:
    x = np.concatenate([np.full(1024, 1e-29, np.float32), np.ones(3, np.float32)])
    np.testing.assert_array_equal(_decoded("int8", x), np.repeat(np.array([0, 1], np.float32), [1024, 3]))


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_survives_the_largest_float(sign: int) -> None:
    x = np.full(5, sign * np.finfo(np.float32).max, np.float32)
    np.testing.assert_allclose(_decoded("int8", x), x, rtol=1e-6)


def _int8_body(scale: float, code: int) -> memoryview:
    return memoryview(np.float32(scale).tobytes() + np.full(10, code, np.int8).tobytes())


@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf, -np.inf, 2.6795e36, 3e38])
def test_int8_refuses_a_scale_that_it_never_writes(scale: float) -> None:
    with pytest.raises(ChunkRefused, match="scale"):
        codec("int8").decode(_int8_body(scale, 0), False, np.empty(10, np.float32))


def test_int8_refuses_the_code_that_it_never_writes() -> None:
    out = np.empty(10, np.float32)
    codec("int8").decode(_int8_body(2.0, -127), False, out)
    assert (out == -254).all()
    with pytest.raises(ChunkRefused, match="code"):
        codec("int8").decode(_int8_body(2.0, -128), False, out)


def test_dense_keeps_every_bit() -> None:
    bits = np.random.default_rng(6).integers(0, 2**32, 5000, np.uint32)
    np.testing.assert_array_equal(_decoded("dense", bits.view(np.float32)).view(np.uint32), bits)

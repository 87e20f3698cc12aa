"""The laws that every registered codec keeps, a new one included by being registered."""

from __future__ import annotations

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused
from fedbus.codec import Codec, Vector, codec
from fedbus.codec.chunk import ALLOWANCE_BYTES, MAX_HEADER_BYTES, chunk_digest, decode_chunk, encode_chunk
from fedbus.codec.framing import Framing
from fedbus.codec.grid import CHUNK_ELEMENTS, Span
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.codecs import CASES, encoded, made_of

EVERY = pytest.mark.parametrize("case", CASES)
LAWS = settings(derandomize=True, database=None, deadline=None, max_examples=60)
GUARD = np.float32(-7.25)
LARGEST = np.finfo(np.float32).max


def _drawn(kind: str, size: int, seed: int) -> Vector:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size).astype(np.float32)
    match kind:
        case "zeros":
            x[:] = 0
        case "constant":
            x[:] = x[0]
        case "denormal":
            x = (rng.integers(-8_000_000, 8_000_000, size)).astype(np.float32) * np.float32(2.0**-149)
        case "huge":
            x = rng.choice(np.array([LARGEST, -LARGEST, LARGEST / 2, 1, 0], np.float32), size)
        case "sparse":
            x[rng.random(size) < 0.97] = 0
        case "every scale":
            x *= np.exp2(rng.integers(-120, 120, size)).astype(np.float32)
        case "tiny":
            x *= np.float32(1e-29)
    return x


KINDS = ["normal", "zeros", "constant", "denormal", "huge", "sparse", "every scale", "tiny"]
SIZES = [1, 2, 31, 1023, 1024, 1025, 4096, 5001]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.one_of(
    st.builds(_drawn, st.sampled_from(KINDS), st.sampled_from(SIZES), st.integers(0, 2**32 - 1)),
    hnp.arrays(np.float32, st.integers(1, 64), elements=finite),
)
places = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7))


class Guarded:
    """A destination between elements that a decoder must not touch."""

    def __init__(self, count: int) -> None:
        self.buffer = np.full(count + 64, GUARD, np.float32)
        self.out = self.buffer[32:-32]

    def check(self) -> None:
        assert (self.buffer[:32] == GUARD).all()
        assert (self.buffer[-32:] == GUARD).all()


def _attack(made: Codec, body: bytes, blosc: bool, count: int) -> bool:
    """Decode a body that may be anything; say whether it was accepted."""
    target = Guarded(count)
    try:
        made.decode(memoryview(body), blosc, target.out)
    except ChunkRefused:
        return False
    finally:
        target.check()
    return True


@EVERY
@LAWS
@given(x=vectors)
def test_round_trip_stays_within_the_stated_bound(case: str, x: Vector) -> None:
    made = made_of(case)
    x.flags.writeable = False
    body, blosc = encoded(made, x)
    target = Guarded(len(x))
    made.decode(memoryview(body), blosc, target.out)
    target.check()
    error = np.abs(target.out.astype(np.float64) - x)
    assert (error <= made.bound(x)).all()
    assert len(body) <= 4 * len(x) + ALLOWANCE_BYTES - MAX_HEADER_BYTES - 2


@EVERY
@LAWS
@given(x=vectors)
def test_encoding_is_a_function_of_the_values(case: str, x: Vector) -> None:
    assert encoded(made_of(case), x) == encoded(made_of(case), x.copy())


@EVERY
@LAWS
@given(x=vectors, cut=st.integers(1, 4096), tail=st.binary(min_size=1, max_size=64))
def test_a_body_of_another_length_is_refused(case: str, x: Vector, cut: int, tail: bytes) -> None:
    made = made_of(case)
    body, blosc = encoded(made, x)
    assert not _attack(made, body[: max(0, len(body) - cut)], blosc, len(x))
    assert not _attack(made, body + tail, blosc, len(x))
    assert not _attack(made, b"", blosc, len(x))


@EVERY
@LAWS
@given(x=vectors, flips=st.lists(places, min_size=1, max_size=8))
def test_flipped_bits_never_escape_the_destination(
    case: str, x: Vector, flips: list[tuple[float, int]]
) -> None:
    made = made_of(case)
    body, blosc = encoded(made, x)
    broken = bytearray(body)
    for place, bit in flips:
        broken[int(place * len(broken))] ^= 1 << bit
    _attack(made, bytes(broken), blosc, len(x))
    _attack(made, body, not blosc, len(x))


@EVERY
@LAWS
@given(body=st.binary(max_size=300), blosc=st.booleans(), count=st.integers(1, 300))
def test_noise_never_escapes_the_destination(case: str, body: bytes, blosc: bool, count: int) -> None:
    _attack(made_of(case), body, blosc, count)


WORDS = [struct.pack("<i", n) for n in (0, 1, -1, 254, 255, 4096, 1 << 20, 1 << 28, 2**31 - 1, -(2**31))]
WORDS += [struct.pack("<f", f) for f in (1.0, -1.0, 1e-45, 3e38, LARGEST, np.nan, np.inf, -np.inf)]


@EVERY
@pytest.mark.parametrize("count", [1, 700, 5000])
def test_a_head_that_lies_takes_no_more_memory_than_an_honest_one(case: str, count: int) -> None:
    made, x = made_of(case), _drawn("normal", count, 1)
    body, blosc = encoded(made, x)
    _attack(made, body, blosc, count)  # what is imported on first use
    tracemalloc.start()
    try:
        for place in range(min(40, len(body) - 3)):
            for word in WORDS:
                lying = body[:place] + word + body[place + 4 :]
                tracemalloc.reset_peak()
                _attack(made, lying, blosc, count)
                assert tracemalloc.get_traced_memory()[1] < 32 * count + 65_536, (place, word)
    finally:
        tracemalloc.stop()


@EVERY
@LAWS
@given(x=vectors, value=st.sampled_from([None, None, np.nan, np.inf]))
def test_what_is_left_of_the_values_is_what_the_receiver_lacks(
    case: str, x: Vector, value: float | None
) -> None:
    if value is not None:
        x[0] = value
    framing, span, got = Framing(*CASES[case]), Span(0, "lossy", 0, len(x)), np.empty_like(x)
    data, left = framing.encode(span, x), x.copy()
    assert framing.encode_and_subtract(span, left, got) == data
    if value is not None:
        assert not left.any()
        return
    framing.decode(data, chunk_digest(data), span, got)
    np.testing.assert_array_equal(left, x - got)


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 1024, 1500])
def test_a_value_that_is_not_finite_is_refused_by_the_receiver(case: str, value: float, size: int) -> None:
    span, made = Span(0, "lossy", 0, size), made_of(case)
    x = _drawn("normal", size, 3)
    x[size // 2] = value
    data = encode_chunk(span, x, CASES[case][0], made)
    with pytest.raises(ChunkRefused, match="non-finite"):
        decode_chunk(data, chunk_digest(data), span, CASES[case][0], made, np.empty(size, np.float32))


@EVERY
def test_threads_share_one_codec(case: str) -> None:
    span, made = Span(0, "lossy", 0, 20_000), made_of(case)
    inputs = [_drawn(kind, span.count, 5) for kind in KINDS]

    def round_trip(x: Vector) -> tuple[bytes, bytes]:
        data, out = encode_chunk(span, x, CASES[case][0], made), np.empty_like(x)
        decode_chunk(data, chunk_digest(data), span, CASES[case][0], made, out)
        return data, out.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(round_trip, inputs * 3)) == [round_trip(x) for x in inputs] * 3


@EVERY
def test_a_full_chunk_of_noise_fits_the_default_payload(case: str) -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, CHUNK_ELEMENTS, np.uint32)
    x = np.nan_to_num(bits.view(np.float32), nan=1.0)
    data = encode_chunk(Span(0, "lossy", 0, CHUNK_ELEMENTS), x, CASES[case][0], made_of(case))
    assert len(data) < (1 << 20) - 4096


def test_the_shipped_codecs_are_found_and_ordered_by_size() -> None:
    x = _drawn("normal", 50_000, 9)
    sizes = [len(codec(name).encode(x)[0]) for name in ("dense", "bf16", "int8", "ecq", "topk")]
    assert all(small < 0.75 * large for large, small in pairwise(sizes))

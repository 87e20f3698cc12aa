"""No header that lies reaches blosc2's C code."""

from __future__ import annotations

import ast
import struct
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused
from fedbus.codec.blosc import Shuffle, check, compress, decompress_into, pack, unpack
from numpy.typing import NDArray

ROOT = Path(__file__).parents[3]
CODES = np.random.default_rng(1).normal(0, 3, 200_000).astype(np.int8)


def _patched(chunk: bytes, *fields: tuple[int, str, int]) -> bytes:
    """A chunk with some of its header fields replaced: offset, struct format, value."""
    patched = bytearray(chunk)
    for offset, kind, value in fields:
        struct.pack_into("<" + kind, patched, offset, value)
    return bytes(patched)


def _made(codes: NDArray[Any] = CODES, **how: Any) -> bytes:
    """A chunk that blosc2 makes with other settings than ours."""
    ours = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "typesize": 1, "nthreads": 1}
    settings = ours | {"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]} | how
    chunk: bytes = blosc2.compress2(codes, **settings)
    return chunk


PLAIN = compress(CODES, 1, "bits")
ZEROS = compress(np.zeros(200_000, np.int8), 1, "bits")
NOISE = np.random.default_rng(2).integers(0, 256, 100, np.uint8)
COPY = compress(NOISE, 1, "bits")
SIZE = CODES.nbytes

LIES = {
    "nbytes larger": (_patched(PLAIN, (4, "i", SIZE + 1)), "nbytes"),
    "nbytes a bomb": (_patched(ZEROS, (4, "i", 2**31 - 33)), "nbytes"),
    "nbytes smaller": (_patched(PLAIN, (4, "i", SIZE - 1)), "nbytes"),
    "nbytes negative": (_patched(PLAIN, (4, "i", -SIZE)), "nbytes"),
    "nbytes zero": (_patched(PLAIN, (4, "i", 0)), "nbytes"),
    "cbytes larger": (_patched(PLAIN, (12, "i", len(PLAIN) + 1)), "cbytes"),
    "cbytes smaller": (_patched(PLAIN, (12, "i", len(PLAIN) - 1)), "cbytes"),
    "cbytes negative": (_patched(PLAIN, (12, "i", -1)), "cbytes"),
    "truncated": (PLAIN[:-1], "cbytes"),
    "extended": (PLAIN + b"\0", "cbytes"),
    "expansion": (_patched(PLAIN + bytes(SIZE), (12, "i", len(PLAIN) + SIZE)), "cbytes"),
    "blocksize zero": (_patched(PLAIN, (8, "i", 0)), "blocksize 0"),
    "blocksize negative": (_patched(PLAIN, (8, "i", -4096)), "blocksize -4096"),
    "blocksize beyond": (_patched(PLAIN, (8, "i", SIZE + 1)), "blocksize"),
    "too many blocks": (_patched(PLAIN, (8, "i", 1)), "more than 4096 blocks"),
    "typesize": (_patched(PLAIN, (3, "B", 2)), "typesize 2"),
    "typesize zero": (_patched(PLAIN, (3, "B", 0)), "typesize 0"),
    "version": (_patched(PLAIN, (0, "B", 7)), "version 7.1"),
    "codec version": (_patched(PLAIN, (1, "B", 0)), "version 5.0"),
    "old header": (_patched(PLAIN, (2, "B", PLAIN[2] & ~1)), "extended"),
    "delta": (_patched(PLAIN, (2, "B", PLAIN[2] | 8)), "delta"),
    "special nan": (_patched(ZEROS, (31, "B", 2 << 4)), "special value kind 2"),
    "special value": (
        _patched(ZEROS + b"\1\1\1\1", (31, "B", 3 << 4), (12, "i", 36)),
        "special value kind 3",
    ),
    "special uninit": (_patched(ZEROS, (31, "B", 4 << 4)), "special value kind 4"),
    "special unknown": (_patched(ZEROS, (31, "B", 7 << 4)), "special value kind 7"),
    "zeros with a body": (_patched(PLAIN, (31, "B", 1 << 4)), "zeros"),
    "zeros that copy": (_patched(ZEROS, (2, "B", ZEROS[2] | 2)), "zeros"),
    "dictionary": (_patched(PLAIN, (31, "B", 1)), "byte 31"),
    "lazy": (_patched(PLAIN, (31, "B", 8)), "byte 31"),
    "instrumented": (_patched(PLAIN, (31, "B", 128)), "byte 31"),
    "variable-length blocks": (_patched(PLAIN, (30, "B", 1)), "byte 30"),
    "codec format": (_patched(PLAIN, (2, "B", PLAIN[2] & 0x1F)), "codec format 0"),
    "codec of the user": (_patched(PLAIN, (22, "B", 160)), "compressor 160"),
    "codec parameter": (_patched(PLAIN, (23, "B", 1)), "parameter 1"),
    "filter unknown": (_patched(PLAIN, (16, "B", 200)), "filters"),
    "filter parameter": (_patched(PLAIN, (24, "B", 1)), "filter parameters"),
    "blosclz": (_made(codec=blosc2.Codec.BLOSCLZ), "compressor 0"),
    "lz4": (_made(codec=blosc2.Codec.LZ4), "compressor 1"),
    "zlib": (_made(codec=blosc2.Codec.ZLIB), "compressor 4"),
    "bytedelta": (_patched(PLAIN, (17, "B", blosc2.Filter.BYTEDELTA.value)), "filters .*35"),
    "delta of blocks": (_made(filters=[blosc2.Filter.DELTA]), "delta|filters"),
    "no table": (_patched(PLAIN[:36], (12, "i", 36)), "table"),
    "block before the table": (_patched(PLAIN, (32, "i", 32)), "block lies outside"),
    "block negative": (_patched(PLAIN, (36, "i", -1)), "block lies outside"),
    "block beyond the end": (_patched(PLAIN, (36, "i", len(PLAIN) - 3)), "block lies outside"),
    "shorter than a header": (PLAIN[:31], "header"),
    "empty": (b"", "header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_for_that_reason(lie: str) -> None:
    chunk, reason = LIES[lie]
    out = np.full(SIZE + 64, 77, np.int8)
    with pytest.raises(ChunkRefused, match=reason):
        decompress_into(memoryview(chunk), out[32:-32], 1)
    assert (out == 77).all(), "refused, but written to"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_copy_of_another_length_is_refused(change: int) -> None:
    chunk = _patched((COPY + b"\0")[: len(COPY) + change], (12, "i", len(COPY) + change))
    with pytest.raises(ChunkRefused, match=r"copy of 100|cbytes"):
        decompress_into(memoryview(chunk), np.empty(100, np.uint8), 1)


def test_broken_data_behind_a_true_header_is_refused() -> None:
    broken = bytearray(PLAIN)
    broken[len(PLAIN) // 2 :] = bytes(len(PLAIN) - len(PLAIN) // 2)
    with pytest.raises(ChunkRefused, match="broken"):
        decompress_into(memoryview(broken), np.empty(SIZE, np.int8), 1)


@pytest.mark.parametrize("shuffle", ["bytes", "bits"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.float64])
def test_own_chunks_are_accepted_and_equal(dtype: type[np.generic], shuffle: Shuffle) -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 15, 16, 17, 255, 1023, 4097, 70_001, 258_048):
        for codes in (
            np.zeros(count),
            np.full(count, 9),
            rng.integers(0, 100, count),
            rng.integers(0, 3, count),
        ):
            x = codes.astype(dtype)
            out = np.full_like(x, 5)
            decompress_into(memoryview(compress(x, x.itemsize, shuffle)), out, x.itemsize)
            np.testing.assert_array_equal(out, x)


def test_the_three_kinds_of_own_chunk_were_covered() -> None:
    assert len(ZEROS) == 32
    assert ZEROS[31] == 1 << 4
    assert COPY[2] & 2
    assert len(COPY) == 132
    for chunk, size in ((PLAIN, SIZE), (ZEROS, SIZE), (COPY, 100)):
        check(memoryview(chunk), size, 1)


def test_a_destination_that_cannot_take_the_bytes_in_order_is_our_own_mistake() -> None:
    fixed = np.empty(SIZE, np.int8)
    fixed.flags.writeable = False
    for out in (np.empty(2 * SIZE, np.int8)[::2], fixed):
        with pytest.raises(ValueError, match="contiguous, writable"):
            decompress_into(memoryview(PLAIN), out, 1)


def test_codes_are_packed_only_where_it_pays() -> None:
    body, blosc = pack(CODES, "bits")
    assert blosc
    assert CODES.nbytes >= 1.05 * len(body)
    raw, blosc = pack(NOISE, "bits")
    assert not blosc
    assert raw == NOISE.tobytes()
    np.testing.assert_array_equal(unpack(memoryview(body), True, CODES.dtype, CODES.size), CODES)
    np.testing.assert_array_equal(unpack(memoryview(raw), False, NOISE.dtype, NOISE.size), NOISE)
    with pytest.raises(ChunkRefused, match="100 bytes for 99 elements"):
        unpack(memoryview(raw), False, NOISE.dtype, 99)


def test_the_gil_is_released() -> None:
    compress(CODES, 1, "bits")
    before = blosc2.set_releasegil(True)
    assert before is True or before == 1


def test_nobody_else_imports_blosc2() -> None:
    importers = set()
    for folder in ("core", "schemas", "services", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "blosc2" for name in names):
                    importers.add(path.relative_to(ROOT).as_posix())
    assert importers == {"core/fedbus/codec/blosc.py"}

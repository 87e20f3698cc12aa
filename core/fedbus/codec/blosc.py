"""Bounded blosc2: the only file that imports it, and nothing reaches its C code unchecked.

`decompress2` takes the output size from the chunk's own header and never from the
destination, so a lying header writes past the end of it; other header bits return
uninitialised heap or reach decoders with open bugs. Hence the whole header is parsed here
and every field allow-listed: what passes is what `compress` writes, and nothing else.
Layout: https://github.com/Blosc/c-blosc2/blob/main/README_CHUNK_FORMAT.rst

The library's `unpack*` (pickle), cframes and legacy `decompress` are not used: hostile
input runs code in the first and crashes the others.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedbus.base.errors import ChunkRefused

Shuffle = Literal["bytes", "bits"]
Scalar = TypeVar("Scalar", bound=np.generic)

# Smaller gains are not worth the receiver's time.
PAYS = 1.05
MAX_BLOCKS = 4096

# version, codec version, flags, typesize, nbytes, blocksize, cbytes, filters, compressor and its
# parameter, filter parameters, flags 3, flags 2
_HEADER = struct.Struct("<BBBBiii6sBB6sBB")
_EXTENDED, _MEMCPY, _DELTA = 0b101, 0b010, 0b1000
_ZSTD_FORMAT, _ZSTD = 4, 5
_FILTERS = {0, 1, 2}  # none, shuffle, bitshuffle
_SPECIAL_BITS = 0x70  # the other bits: dictionary, big-endian, lazy, instrumented
_ZEROS = 1  # special value kinds above it: NaN run, repeated value, uninitialised


@cache
def _library() -> Any:
    # Imported on first use: it takes 0.2 s and 30 MB, which a command that only needs codecs' names spares.
    import blosc2

    blosc2.set_releasegil(True)
    return blosc2


def compress(codes: NDArray[Any], typesize: int, shuffle: Shuffle) -> bytes:
    """One blosc2 chunk: ZSTD level 1, single-threaded.

    Args:
        codes: contiguous array, at least one element.
        typesize: bytes per element for the shuffle; divides `codes.nbytes`.
        shuffle: transpose bytes or bits before compressing.
    """
    lib = _library()
    chunk: bytes = lib.compress2(
        codes,
        codec=lib.Codec.ZSTD,
        codec_meta=0,
        clevel=1,
        use_dict=False,
        typesize=typesize,
        filters=[lib.Filter.NOFILTER] * 5
        + [lib.Filter.SHUFFLE if shuffle == "bytes" else lib.Filter.BITSHUFFLE],
        filters_meta=[0] * 6,
        nthreads=1,
    )
    return chunk


def decompress_into(src: memoryview, out: NDArray[Any], typesize: int) -> None:
    """Decompress one chunk into `out`, which it must fill exactly.

    Args:
        src: the chunk, and no byte more.
        out: contiguous and writable; its content is undefined after an error.
        typesize: what `compress` was given.

    Raises:
        ChunkRefused: `compress` writes no such header for `out.nbytes` bytes, or the body is broken.
    """
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("blosc2 needs a contiguous, writable destination")
    check(src, out.nbytes, typesize)
    try:
        # Raw bytes: a structured or foreign-endian buffer format is none of the library's business.
        _library().decompress2(src, dst=out.reshape(-1).view(np.uint8), nthreads=1)
    except (ValueError, RuntimeError, SystemError) as error:
        raise ChunkRefused("blosc2: the compressed data is broken") from error


def check(src: memoryview, nbytes: int, typesize: int) -> None:
    """Allow-list a chunk's header and block table.

    Raises:
        ChunkRefused: says which field and why.
    """
    if len(src) < _HEADER.size:
        raise ChunkRefused(f"blosc2: {len(src)} bytes are shorter than a header")
    (
        version,
        codec_version,
        flags,
        item,
        size,
        block,
        length,
        filters,
        compressor,
        codec_meta,
        filters_meta,
        flags3,
        flags2,
    ) = _HEADER.unpack_from(src)
    special = (flags2 & _SPECIAL_BITS) >> 4
    memcpy = bool(flags & _MEMCPY)
    for wrong, what in (
        (version not in (5, 6) or codec_version != 1, f"version {version}.{codec_version}"),
        (flags & _EXTENDED != _EXTENDED, "not an extended header"),
        (flags & _DELTA, "delta flag"),
        (item != typesize, f"typesize {item}, expected {typesize}"),
        (size != nbytes or nbytes < 1, f"nbytes {size}, expected {nbytes}"),
        (length != len(src), f"cbytes {length}, received {len(src)}"),
        (length > nbytes + _HEADER.size, f"cbytes {length} for {nbytes} bytes"),
        (not 0 < block <= nbytes, f"blocksize {block}"),
        (block > 0 and -(-nbytes // block) > MAX_BLOCKS, f"more than {MAX_BLOCKS} blocks"),
        (not _FILTERS.issuperset(filters), f"filters {list(filters)}"),
        (any(filters_meta), f"filter parameters {list(filters_meta)}"),
        (compressor != _ZSTD or codec_meta, f"compressor {compressor}, parameter {codec_meta}"),
        (not memcpy and flags >> 5 != _ZSTD_FORMAT, f"codec format {flags >> 5}"),
        (flags3, f"flags 0x{flags3:02x} in byte 30"),
        (flags2 & ~_SPECIAL_BITS, f"flags 0x{flags2:02x} in byte 31"),
        (special > _ZEROS, f"special value kind {special}"),
        (special and (memcpy or length != _HEADER.size), "zeros with a body"),
        (memcpy and length != nbytes + _HEADER.size, f"a copy of {nbytes} bytes in {length}"),
    ):
        if wrong:
            raise ChunkRefused(f"blosc2 header: {what}")
    if not memcpy and not special:
        _check_blocks(src, -(-nbytes // block))


def _check_blocks(src: memoryview, blocks: int) -> None:
    """Every block must begin after the table and leave room for the length of its first stream."""
    start = _HEADER.size + 4 * blocks
    if start > len(src):
        raise ChunkRefused(f"blosc2: no room for a table of {blocks} blocks")
    offsets = np.frombuffer(src, "<i4", blocks, _HEADER.size)
    if offsets.min() < start or offsets.max() > len(src) - 4:
        raise ChunkRefused("blosc2: a block lies outside the chunk")


def pack(codes: NDArray[Any], shuffle: Shuffle) -> tuple[bytes, bool]:
    """Codes as they travel: through blosc2 where it pays, else raw; the flag says which."""
    chunk = compress(codes, codes.itemsize, shuffle)
    return (chunk, True) if codes.nbytes >= PAYS * len(chunk) else (codes.tobytes(), False)


def unpack(body: memoryview, blosc: bool, dtype: np.dtype[Scalar], count: int) -> NDArray[Scalar]:
    """Codes that `pack` wrote: `count` elements, a read-only view of `body` where they are raw.

    Raises:
        ChunkRefused: the body does not hold exactly these codes.
    """
    if blosc:
        codes = np.empty(count, dtype)
        decompress_into(body, codes, dtype.itemsize)
        return codes
    if len(body) != count * dtype.itemsize:
        raise ChunkRefused(f"{len(body)} bytes for {count} elements of {dtype.itemsize} bytes")
    return np.frombuffer(body, dtype)

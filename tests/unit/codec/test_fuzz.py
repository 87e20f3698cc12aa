"""The decoder under attack, in a process of its own so that a crash is seen as one.

Each mutated chunk gets its own true digest: a hostile worker lists what it sends.
`make fuzz` runs 100,000 cases from a seed of its own; a seed that it printed can be given again.
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import resource
import secrets
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from fedbus.base.errors import ChunkRefused
from fedbus.codec import Vector
from fedbus.codec.blosc import compress, decompress_into
from fedbus.codec.chunk import chunk_digest, decode_chunk, encode_chunk
from fedbus.codec.grid import Span
from support.codecs import CASES, made_of

SEED, COUNT, LONG = 20_240, 3000, 100_000
TESTS = Path(__file__).parents[2]
# Beyond what the process has when the attack begins. The largest chunk here has 160 KB.
ROOM_BYTES = 32 << 20
HANG_S = 20
GUARD = np.float32(-7.25)
COUNTS = "{} decoded, {} refused for {} reasons, {} bare blosc2 chunks decoded"
INTS = [0, 1, -1, 2, 31, 32, 33, 255, 4095, 4096, 65_536, 1 << 20, 1 << 28, 2**31 - 1, -(2**31), 2**31 - 33]
FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 3e36, 3.4e38, float("inf"), float("-inf"), float("nan")]
VALUES = [*INTS, True, None, "dense", "int8", b"x", 1.5, [1], {"a": 1}, msgpack.ExtType(1, b"")]


def test_three_thousand_hostile_chunks_leave_the_process_standing() -> None:
    command = [sys.executable, "-W", "error", __file__, str(COUNT), str(SEED)]
    path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    env = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, f"died with {done.returncode}\n{done.stdout}\n{done.stderr}"
    line = re.search(COUNTS.format(*[r"(\d+)"] * 4), done.stdout)
    assert line, done.stdout
    decoded, refused, reasons, bare = map(int, line.groups())
    assert decoded + refused == COUNT
    # Of use only if both happen often, and by many ways.
    assert min(decoded, bare) > 100
    assert refused > 1000
    assert reasons > 25


def _sources() -> list[tuple[str, Span, Vector]]:
    rng = np.random.default_rng(SEED)
    sources = []
    for case in CASES:
        for index, count in enumerate((1, 700, 1025, 6000, 40_000)):
            x = (rng.standard_normal(count) * 1e-3).astype(np.float32)
            sparse = np.where(rng.random(count) < 0.9, 0, x).astype(np.float32)
            span = Span(index, "lossy", 1000 * index, count)
            sources += [(case, span, values) for values in (x, sparse, np.zeros_like(x))]
    return sources


def _edit_header(data: bytes, rng: random.Random) -> bytes:
    """Change the frame's header and keep its form."""
    (length,) = struct.unpack_from("<H", data)
    fields: dict[Any, Any] = msgpack.unpackb(data[2 : 2 + length])
    key = rng.choice([*fields, "more"])
    fields[key] = rng.choice(VALUES)
    if rng.random() < 0.5:
        fields["blosc"] = rng.random() < 0.5
    packed: bytes = msgpack.packb(fields)
    claimed = len(packed) if rng.random() < 0.9 else rng.randrange(1 << 16)
    return struct.pack("<H", claimed) + packed + data[2 + length :]


def _edit_blosc(data: bytearray, start: int, rng: random.Random) -> None:
    """Change fields of the blosc2 header, its block table or its streams."""
    choice = rng.random()
    if choice < 0.3:
        struct.pack_into("<i", data, start + rng.choice([4, 8, 12]), rng.choice(INTS))
    elif choice < 0.6:
        data[start + rng.randrange(32)] = rng.randrange(256)
    elif len(data) - start > 40:
        word = rng.randrange((len(data) - start - 36) // 4)
        struct.pack_into("<i", data, start + 32 + 4 * word, rng.choice(INTS))


def _edit_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, extend or splice."""
    broken = bytearray(data)
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randrange(1, 6)):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        case 1:
            del broken[rng.randrange(len(broken)) :]
        case 2:
            broken += rng.randbytes(rng.randrange(1, 80))
        case _:
            at, size = rng.randrange(len(broken)), rng.randrange(1, 200)
            broken[at : at + size] = broken[:size]
    return bytes(broken)


def _edit_body(data: bytes, rng: random.Random) -> bytes:
    """A true header before a body whose head lies, or that is noise."""
    start = 2 + struct.unpack_from("<H", data)[0]
    body = bytearray(data[start:])
    if rng.random() < 0.3 or len(body) < 20:
        body = bytearray(rng.randbytes(rng.choice([0, 1, 16, 300, len(body)])))
    elif rng.random() < 0.5:
        struct.pack_into("<i", body, rng.randrange(16), rng.choice(INTS))
    else:
        struct.pack_into("<f", body, 4 * rng.randrange(4), rng.choice(FLOATS))
    return data[:start] + bytes(body)


def _mutated(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(3000))
    if rng.random() < 0.25:
        return _edit_body(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = data.find(b"\x05\x01")  # where a blosc2 chunk begins, if there is one
        if len(data) > 2 and start > 0 and len(data) - start >= 40 and rng.random() < 0.6:
            broken = bytearray(data)
            _edit_blosc(broken, start, rng)
            data = bytes(broken)
        elif rng.random() < 0.25:
            try:
                data = _edit_header(data, rng)
            except (ValueError, TypeError, struct.error):  # an earlier mutation broke the header
                data = _edit_bytes(data or b"\0", rng)
        else:
            data = _edit_bytes(data or b"\0", rng)
    return data


def _attack_frame(data: bytes, case: str, span: Span) -> str | None:
    """Why the chunk was refused, or None; fails if it wrote beyond its place or let a non-finite value in."""
    buffer = np.full(span.count + 64, GUARD, np.float32)
    out = buffer[32:-32]
    try:
        decode_chunk(data, chunk_digest(data), span, CASES[case][0], made_of(case), out)
    except ChunkRefused as error:
        return re.sub(r"\d+", "#", error.message)[:60]
    finally:
        assert (buffer[:32] == GUARD).all()
        assert (buffer[-32:] == GUARD).all()
    assert np.isfinite(out).all()
    return None


def _attack_blosc(codes: np.ndarray[Any, Any], rng: random.Random) -> bool:
    """Whether a mutated blosc2 chunk decodes; fails if it leaves a byte of the destination as it was."""
    broken = bytearray(compress(codes, 1, "bits"))
    _edit_blosc(broken, 0, rng)
    outs = [np.full(codes.size, fill, np.int8) for fill in (0x55, 0x2A)]
    try:
        for out in outs:
            decompress_into(memoryview(broken), out, 1)
    except ChunkRefused:
        return False
    np.testing.assert_array_equal(outs[0], outs[1], err_msg="uninitialised memory")
    return True


def main(count: int, seed: int) -> None:
    """Attack `count` times and print what came of it."""
    print(f"seed {seed}", flush=True)
    sources = _sources()
    encoded = [encode_chunk(span, x, CASES[case][0], made_of(case)) for case, span, x in sources]
    codes = np.random.default_rng(seed).normal(0, 2, 50_000).astype(np.int8)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not kept
        room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    reasons: Counter[str] = Counter()
    decoded = bare = 0
    for number in range(count):
        if number % 100 == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True)  # from a thread: C code may hang, too
        rng = random.Random(seed * 1_000_003 + number)
        which = rng.randrange(len(sources))
        case, span, _ = sources[which]
        reason = _attack_frame(_mutated(encoded[which], rng), case, span)
        if reason is None:
            decoded += 1
        else:
            reasons[reason] += 1
        bare += _attack_blosc(codes, rng)
    for reason, times in reasons.most_common(40):
        print(f"{times:6} {reason}")
    print(COUNTS.format(decoded, reasons.total(), len(reasons), bare))


if __name__ == "__main__":
    count, seed, *_ = [*map(int, sys.argv[1:]), *(LONG, secrets.randbelow(2**32))[len(sys.argv) - 1 :]]
    main(count, seed)

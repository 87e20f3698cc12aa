"""The chart of a run, as text and as PNG."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from fedbus.cli.chart import HEIGHT, WIDTH, bars, write_png


def test_columns_are_as_high_as_their_values() -> None:
    lines = bars([0.5, 0.75, 1.0], height=4)
    assert lines == [
        " 1.00 ┤         ██",
        " 0.88 ┤         ██",
        " 0.75 ┤     ██  ██",
        " 0.62 ┤     ██  ██",
        " 0.50 ┼────────────",
        "        1   2   3",
    ]


def test_any_values_from_zero_to_one_can_be_drawn(tmp_path: Path) -> None:
    for values in ([0.0], [1.0], [0.97, 0.99], [0.0, 1.0] * 40):
        assert len(bars(values)) == 10
        write_png(values, tmp_path / "chart.png")


def test_the_png_is_one_and_its_line_rises(tmp_path: Path) -> None:
    write_png([0.2, 0.9], tmp_path / "chart.png")
    image = _read(tmp_path / "chart.png")
    blue = np.argwhere((image == (31, 95, 170)).all(axis=2))
    left, right = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert left[0] > right[0] + 100, "rows count downwards"


def _read(path: Path) -> np.ndarray:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, rows = 8, b""
    kinds = []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        if kind == b"IHDR":
            assert struct.unpack(">IIBBBBB", body) == (WIDTH, HEIGHT, 8, 2, 0, 0, 0)
        if kind == b"IDAT":
            rows += zlib.decompress(body)
        at += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    lines = np.frombuffer(rows, np.uint8).reshape(HEIGHT, 1 + 3 * WIDTH)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(HEIGHT, WIDTH, 3)

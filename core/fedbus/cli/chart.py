"""A line chart as text and as PNG, with nothing but numpy and zlib."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 360  # pixels of the PNG
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 16, 28
_INK, _GRID, _LINE = (60, 60, 60), (225, 225, 225), (31, 95, 170)
_EIGHTHS = " ▁▂▃▄▅▆▇█"
# Digits of 3 by 5 pixels, a row an octal digit.
_GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711",
    "5": "74717", "6": "74757", "7": "71122", "8": "75757", "9": "75717", ".": "00002",
}  # fmt: skip

Pixels = NDArray[np.uint8]


def bars(values: Sequence[float], height: int = 8, column: int = 4) -> list[str]:
    """Values from 0 to 1 as columns of block characters, one a round; the lowest line numbers them.

    The scale begins at the multiple of 0.1 below the smallest value, so that small gains show.
    """
    low = _floor(values)
    lines = []
    for row in range(height, 0, -1):
        top = low + (1 - low) * row / height
        cells = ""
        for value in values:
            eighths = round((value - low) / (1 - low) * height * 8) - (row - 1) * 8
            cells += " " + _EIGHTHS[max(0, min(8, eighths))] * (column - 2) + " "
        lines.append(f"{top:5.2f} ┤{cells}".rstrip())
    numbers = "".join(f"{number:^{column}}" for number in range(1, len(values) + 1))
    return [*lines, f"{low:5.2f} ┼{'─' * column * len(values)}", f"       {numbers}".rstrip()]


def write_png(values: Sequence[float], path: Path) -> None:
    """Draw values from 0 to 1 over rounds 1, 2, 3 and so on into a PNG file."""
    low = _floor(values)
    image: Pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)

    def x_of(index: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * index / max(1, len(values) - 1)

    def y_of(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (1 - low))

    for step in range(6):
        value = low + (1 - low) * step / 5
        image[round(y_of(value)), _LEFT : WIDTH - _RIGHT] = _GRID if step else _INK
        _write(image, f"{value:.2f}", 8, round(y_of(value)) - 5)
    every = -(-len(values) // 12)
    for index in range(0, len(values), every):
        _write(image, str(index + 1), round(x_of(index)) - 3, HEIGHT - _BOTTOM + 8)
    points = [(x_of(index), y_of(value)) for index, value in enumerate(values)]
    for (x0, y0), (x1, y1) in pairwise(points):
        count = 2 * int(max(abs(x1 - x0), abs(y1 - y0))) + 2
        for x, y in zip(np.linspace(x0, x1, count), np.linspace(y0, y1, count), strict=True):
            image[round(y) - 1 : round(y) + 1, round(x) - 1 : round(x) + 1] = _LINE
    for x, y in points:
        image[round(y) - 3 : round(y) + 3, round(x) - 3 : round(x) + 3] = _LINE
    path.write_bytes(_png(image))


def _floor(values: Sequence[float]) -> float:
    return max(0.0, min(0.9, int(min(values) * 10) / 10))


def _write(image: Pixels, text: str, x: int, y: int) -> None:
    for character in text:
        for row, bits in enumerate(_GLYPHS[character]):
            for bit in range(3):
                if int(bits, 8) >> (2 - bit) & 1:
                    image[y + 2 * row : y + 2 * row + 2, x + 2 * bit : x + 2 * bit + 2] = _INK
        x += 8


def _png(image: Pixels) -> bytes:
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # filter 0 before each row
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

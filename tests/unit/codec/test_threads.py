"""Chunks that several threads encode and decode at once are those of one thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Span
from support.codecs import CASES

THREADS = 12
CHUNKS = 48
SPANS = [Span(index, "lossy", 20_000 * index, 20_000 - 7 * index) for index in range(CHUNKS)]


def values(span: Span) -> Vector:
    rng = np.random.default_rng(span.index)
    return rng.standard_normal(span.count, dtype=np.float32) * np.float32(10.0 ** (span.index % 7 - 3))


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_disturb_one_another(case: str) -> None:
    framing = Framing(*CASES[case])

    def there_and_back(span: Span) -> tuple[bytes, bytes, float]:
        data, out = framing.encode(span, values(span)), np.empty(span.count, np.float32)
        peak = framing.decode(data, chunk_digest(data), span, out)
        return data, out.tobytes(), peak

    alone = [there_and_back(span) for span in SPANS]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(3):
            assert list(threads.map(there_and_back, SPANS)) == alone
    assert [peak for *_, peak in alone] == [
        float(np.abs(np.frombuffer(b, np.float32)).max()) for _, b, _ in alone
    ]

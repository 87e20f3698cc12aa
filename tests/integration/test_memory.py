"""The aggregator's memory is a few times the model, whatever the size of the cohort.

With a columnwise strategy it is one chunk of each update, whatever the size of the model.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
from fedbus.codec.grid import CHUNK_ELEMENTS
from support.federation import Parties, federation
from support.natsd import Stack
from support.scripted import honest

ELEMENTS = 5_000_000
MODEL_MB = 4 * ELEMENTS / 1e6
ROUNDS = 3
# One sum, one scratch vector, and some 15 MB of chunks on their way in or out.
MOST = 4.0
CHUNK_MB = 4 * CHUNK_ELEMENTS / 1e6
# Chunks on their way in or out, and the first read's chunk.
IN_FLIGHT_MB = 16.0


async def test_memory_does_not_grow_with_the_cohort(stack: Stack, tmp_path: Path) -> None:
    peaks = {workers: await measure(stack, tmp_path, workers) for workers in (2, 8)}
    said = f"peak MB of each round, by cohort size: {peaks}; the model has {MODEL_MB:g} MB"
    # How many chunks are in flight at the same moment varies from round to round: compare the calmest.
    few, many = min(peaks[2]), min(peaks[8])
    assert few >= 2 * MODEL_MB, f"less than sum and scratch, so something was not measured: {said}"
    assert abs(many - few) <= 0.1 * few, said
    assert max(peaks[2] + peaks[8]) <= MOST * MODEL_MB, said


async def test_a_median_takes_one_chunk_of_each_update(stack: Stack, tmp_path: Path) -> None:
    for workers in (2, 12):
        peaks = await measure(stack, tmp_path, workers, "median")
        said = f"peak MB of each round with {workers} workers: {peaks}; the model has {MODEL_MB:g} MB"
        assert min(peaks) >= workers * CHUNK_MB, f"something was not measured: {said}"
        assert max(peaks) <= workers * CHUNK_MB + IN_FLIGHT_MB, said


async def measure(stack: Stack, tmp_path: Path, workers: int, strategy: str = "fedavg") -> list[float]:
    """Peaks of what an aggregator allocates to read, fold and publish a round, in MB.

    The updates are uploaded before it starts, so that nothing else in this process allocates meanwhile.
    """
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for number in range(workers):
            await parties.script(f"m{number}", honest(np.ones(ELEMENTS, np.float32), number + 1))
        plan = {"rounds": ROUNDS, "train": {"elements": ELEMENTS}, "cohort": {"min": workers}}
        plan |= {"retain": {"rounds": 0}, "strategy": strategy}
        run = await parties.start(plan, f"memory-{strategy}-{workers}")
        peaks = [await _peak(parties, run, number) for number in range(1, ROUNDS + 1)]
        report = await parties.finished(run)
        assert [r.accepted for r in report.rounds] == [workers] * ROUNDS
        assert (await parties.model(report.model) == ROUNDS).all()
    return peaks


async def _peak(parties: Parties, run: str, number: int) -> float:
    round_ = parties.round
    await parties.until(lambda: round_(run, number).opened, "the round opens")
    await parties.aggregator.crash()
    await parties.until(lambda: _all_sent(parties, run, number), "all updates are uploaded")
    assert not round_(run, number).accepted, "the aggregator was too fast"
    tracemalloc.start()
    try:
        await parties.aggregator.start()
        await parties.until(lambda: round_(run, number).aggregated, "the round is folded")
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _all_sent(parties: Parties, run: str, number: int) -> bool:
    return all((run, number) in worker.sent for worker in parties.scripted.values())

"""An aggregator that folds several runs at once."""

from __future__ import annotations

from pathlib import Path

from fedbus.bus.hostlock import HostLock
from support.federation import federation
from support.natsd import Stack

ELEMENTS = 300_000  # two chunks: such a model is shared with other processes
RUNS = [f"beside-{number}" for number in range(4)]


def is_free(folder: Path, digest: str) -> bool:
    """Whether no process vouches for a model's file."""
    lock = HostLock.take(folder / "models" / f"{digest}.lock", alone=True)
    if lock is not None:
        lock.release()
    return lock is not None


async def test_the_base_of_each_run_is_held_while_its_round_is_open(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("silent")
        bases: list[str] = []
        for run in RUNS:
            await parties.start({"cohort": {"min": 1}, "train": {"elements": ELEMENTS}}, run)
            await parties.until(lambda run=run: parties.round(run, 1).opened, "it has a model")
            base = parties.round(run, 0).aggregated.model
            await parties.until(lambda base=base: not is_free(tmp_path, base), "the aggregator has it")
            bases.append(base)
        # Each run made a model after the one before it had its own.
        assert [is_free(tmp_path, base) for base in bases] == [False] * len(RUNS)
        for run in RUNS:
            await parties.api.abort(run)
            await parties.ended(run)
        last = await parties.start({"cohort": {"min": 1}, "train": {"elements": ELEMENTS}}, "beside-last")
        await parties.until(lambda: parties.round(last, 1).opened, "it has a model")
        await parties.until(lambda: sum(is_free(tmp_path, base) for base in bases) >= 3, "they are let go")

"""Training code that raises or runs out of memory: its worker is named with the reason, the round goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.federation import federation
from support.natsd import Stack
from support.tasks import TASK, walk, write_walk

WORKERS = ("w1", "w2", "w3")
# How w2 breaks in round 2, what is said of it, and what its own log keeps.
WAYS = {
    "raises": ("OSError: the disk of this host is gone", 'walk_for_tests.py", line'),
    "allocates": ("out of memory: MemoryError: Unable to allocate 32.0 PiB", "np.zeros(1 << 55"),
    "bare": ("out of memory: MemoryError", "raise MemoryError"),
    "killed": ("was killed by SIGKILL (out of memory?)", "was killed by SIGKILL"),
}


@pytest.mark.parametrize("how", WAYS)
async def test_the_worker_is_named_the_round_goes_on_and_the_next_one_works(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_walk(tmp_path)
    reason, kept = WAYS[how]
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in WORKERS:
            broken = "2" if name == "w2" else "never"
            labels = {"name": name, "examples": "1", "broken": broken, "how": how}
            await parties.join(name, labels=labels, tasks=(TASK,))
        with caplog.at_level(logging.ERROR, "fedbus_worker"), caplog.at_level(logging.INFO, "fedbus.runtime"):
            run = await parties.start(walk(rounds=3, close={"quorum": 2}), f"fails-{how}")
            report = await parties.finished(run)
        assert [r.accepted for r in report.rounds] == [3, 2, 3]
        (lost,) = report.rounds[1].lost
        assert (lost.worker, lost.code) == ("w2", "failed")
        assert reason in lost.reason
        assert sorted(u.worker for u in report.rounds[1].accepted_updates) == ["w1", "w3"]
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert reason in said
    assert kept in said, "the traceback stays on the worker's host"
    pids = {number: (tmp_path / f"w2.{number}.pid").read_text() for number in (2, 3)}
    # What raises leaves its process whole; one that was short of memory is not used again.
    assert (pids[2] == pids[3]) == (how == "raises")

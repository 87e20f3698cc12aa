"""Error feedback in whole rounds: each worker sends later what it lost, once, also after a crash."""

from __future__ import annotations

import asyncio
import os
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus import Bus, Message
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus_schemas.update import TensorSpec
from support.buses import Ask, Tapped
from support.federation import federation
from support.natsd import Stack
from support.tasks import ELEMENTS, TASK, walk, write_walk

WORKERS = ("w1", "w2", "w3")
ROUNDS = 4


def deaf(stored: asyncio.Event) -> type[Bus]:
    """A connection on which nobody hears that the manifest of round 2 was stored."""

    class Deaf(Tapped):
        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            answer = await ask()
            if fnmatch(subject, "fb.update.*.2.*.manifest"):
                stored.set()
                await asyncio.Event().wait()
            return answer

    return Deaf


class Peer:
    """What a worker should send, from the differences that its task kept."""

    def __init__(self, folder: Path, name: str, codec: str) -> None:
        self._folder, self._name = folder, name
        self._framing = Framing(codec)
        self._lost = np.zeros(ELEMENTS, np.float32)

    def sends(self, number: int) -> Vector:
        values = np.load(self._folder / f"{self._name}.{number}.npy") + self._lost
        before = values.copy()
        scratch = np.empty(ELEMENTS, np.float32)
        for span in Grid.of([TensorSpec(name="w", shape=(ELEMENTS,), dtype="float32")]).spans:
            self._framing.encode_and_subtract(span, values[span.offset : span.end], scratch)
        self._lost = values
        sent: Vector = before - values
        return sent


@pytest.mark.parametrize(("planned", "codec"), [("ecq", "ecq"), ("topk", "topk"), ("auto", "ecq")])
async def test_nothing_is_lost_or_doubled(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: str, codec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_walk(tmp_path)
    run, stored = f"feedback-{planned}", asyncio.Event()
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in WORKERS:
            connection = deaf(stored) if name == "w2" else Bus
            labels = {"name": name, "examples": "1"}
            await parties.join(name, labels=labels, tasks=(TASK,), connection=connection)
        await parties.start(walk(rounds=ROUNDS, codec={"up": planned}), run)
        await parties.until(stored.is_set, "w2 has sent its update of round 2")
        await parties.workers["w2"].crash()
        await parties.workers["w2"].start()
        report = await parties.finished(run)
        counted = [sorted(u.worker for u in r.accepted_updates) for r in report.rounds]
        assert counted == [list(WORKERS)] * ROUNDS
        assert {u.codec for r in report.rounds for u in r.accepted_updates} == {codec}
        first = parties.round(run, 0).aggregated
        assert first
        expected = (await parties.model(first.model)).astype(np.float64)
        peers = [Peer(tmp_path, name, codec) for name in WORKERS]
        for r in report.rounds:
            expected += np.mean([peer.sends(r.round) for peer in peers], axis=0, dtype=np.float64)
            np.testing.assert_allclose(
                await parties.model(r.model), expected, atol=1e-4, err_msg=f"{run}/{r.round}"
            )
        folders = [parties.state_of(name) / "spool" for name in WORKERS]
        await parties.until(lambda: not any(map(os.listdir, folders)), "the run's files are deleted")

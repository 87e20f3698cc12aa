"""Runs whose models travel as differences: what is trained arrives, also late, and after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus import Bus, Message
from fedbus.bus.connection import REQUEST_TIMEOUT_S
from fedbus.bus.micro import ask
from fedbus.bus.models import read_manifest
from fedbus.codec import Vector, codec
from fedbus.codec.grid import Grid
from fedbus_aggregator.service import Aggregator
from fedbus_schemas.report import RunReport
from fedbus_schemas.roster import AskWhy, Standings
from fedbus_schemas.update import ModelManifest
from numpy.typing import NDArray
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import Stack
from support.tasks import ELEMENTS, TASK, walk, write_walk

WORKERS = ("d1", "d2", "d3")  # a run that a test leaves open asks nobody else
SMALL = 1000  # a model that is one message, and a file of each process
CLOSE = 1e-4  # float32 additions in another order


class Gate:
    """Keeps the requests that fit until it is opened; lets the first few pass."""

    def __init__(self, pattern: str, fits: Callable[[bytes], bool] = lambda data: True, few: int = 0) -> None:
        self._pattern = pattern
        self._fits = fits
        self._few = few
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    def connection(self, *, before: bool = True) -> type[Bus]:
        """A connection that stops there, before what it sends is stored or when it is."""
        gate = self

        class Gated(Bus):
            async def request(
                self,
                subject: str,
                data: bytes = b"",
                *,
                headers: Mapping[str, str] | None = None,
                timeout_s: float = REQUEST_TIMEOUT_S,
            ) -> Message:
                stops = gate._stops(subject, data)
                if not stops or before:
                    if stops:
                        await gate._stop()
                    return await super().request(subject, data, headers=headers, timeout_s=timeout_s)
                answer = await super().request(subject, data, headers=headers, timeout_s=timeout_s)
                await gate._stop()
                return answer

        return Gated

    def _stops(self, subject: str, data: bytes) -> bool:
        if not fnmatch(subject, self._pattern) or not self._fits(data):
            return False
        self._few -= 1
        return self._few < 0

    async def _stop(self) -> None:
        self.reached.set()
        await self.open.wait()


class Models:
    """The models of a run as they are, and as exact sums would have made them."""

    def __init__(self, parties: Parties, folder: Path, report: RunReport) -> None:
        self._parties = parties
        self._folder = folder
        self._report = report
        self.manifests: list[ModelManifest] = []
        self.values: list[Vector] = []

    async def load(self) -> Models:
        first = self._parties.round(self._report.run, 0).aggregated
        assert first
        for digest in (first.model, *(r.model for r in self._report.rounds)):
            assert digest
            self.manifests.append(await read_manifest(self._parties.operator, digest))
            self.values.append(await self._parties.model(digest))
        return self

    @property
    def whole(self) -> list[int]:
        """Numbers of those that travelled whole."""
        return [m.round for m in self.manifests if not m.is_delta]

    def mean(self, number: int) -> NDArray[np.float64]:
        """What the members of a round trained, on average."""
        (report,) = [r for r in self._report.rounds if r.round == number]
        names = [u.worker for u in report.accepted_updates]
        trained: NDArray[np.float64] = np.mean(
            [np.load(self._folder / f"{name}.{number}.npy") for name in names], axis=0, dtype=np.float64
        )
        return trained

    def check(self, forgot: int | None = None) -> None:
        """Each is within the codec's bound of the exact sum; whole ones are exact.

        Args:
            forgot: a round that went on from the model as it travelled, instead of the exact one.
        """
        exact = self.values[0].astype(np.float64)
        for number in range(1, len(self.values)):
            if number == forgot:
                exact = self.values[number - 1].astype(np.float64)
            exact += self.mean(number)
            bound = np.full(exact.shape, CLOSE)
            if number not in self.whole:
                change = (exact - self.values[number - 1]).astype(np.float32)
                for span in Grid.of(self.manifests[0].table).spans:
                    bound[span.offset : span.end] += codec("ecq").bound(change[span.offset : span.end])
            behind = np.abs(self.values[number] - exact)
            assert (behind <= bound).all(), f"round {number}: {behind.max()}"
            assert number in self.whole or behind.max() > 100 * CLOSE, "nothing was lost: no difference"


async def join(parties: Parties, name: str, connection: type[Bus] = Bus) -> None:
    await parties.join(name, labels={"name": name, "examples": "1"}, tasks=(TASK,), connection=connection)


def lost(folder: Path) -> list[Path]:
    """Files of what models lack."""
    return sorted((folder / "models" / "lost").glob("*"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_walk(tmp_path)
    return tmp_path


async def test_all_that_is_trained_arrives_also_at_a_late_joiner(stack: Stack, folder: Path) -> None:
    run, gate = "deltas-late", Gate("fb.update.*.5.*.manifest")
    async with federation(stack.credentials, folder, workers=(), evaluator=True) as parties:
        for name in WORKERS:
            await join(parties, name, gate.connection() if name == "d3" else Bus)
        plan = walk(rounds=7, codec={"up": "dense", "down": "ecq", "full_every": 3})
        await parties.start(plan | {"evaluate": {"central": True}}, run)
        await parties.until(gate.reached.is_set, "round 5 is open")
        await join(parties, "late")
        await parties.until_true(lambda: _is_known(parties, run, "late"), "the planner hears it")
        gate.open.set()
        report = await parties.finished(run)
        models = await Models(parties, folder, report).load()
        assert models.whole == [0, 3, 6, 7]
        models.check()

        # It came when round 5 was open, so it had to make model 5 from 3 and the differences 4 and 5.
        counted = [[u.worker for u in r.accepted_updates] for r in report.rounds]
        assert ["late" in names for names in counted] == [False] * 5 + [True] * 2
        made = parties.state_of("late") / "models" / f"{report.rounds[4].model}.f32"
        np.testing.assert_array_equal(np.fromfile(made, np.float32), models.values[5])

        # What a report says of a round's model is what a member that has its base downloads.
        for r in report.rounds:
            base = models.manifests[r.round - 1]
            expected = len(base.pack()) + base.size_bytes
            assert r.bytes_down == expected * len(r.cohort), f"round {r.round}"
            assert base.is_delta == (expected < 4 * len(models.values[0]) / 8)
        assert [r.code for r in report.rounds] == [None] * 7, "the evaluator had each model"
        shown = [await parties.api.models.show(f"{run}/{number}") for number in range(8)]
        assert [m.round for m in shown if not m.delta] == models.whole
        assert [m.size_bytes for m in shown] == [len(m.pack()) + m.size_bytes for m in models.manifests]
        await parties.until(lambda: not lost(folder), "what models lack is deleted")


async def _is_known(parties: Parties, run: str, name: str) -> bool:
    asked = AskWhy(worker=name, run=run)
    said = await ask(parties.operator, "planner", "why", asked, Standings)
    return [item.code for item in said.items] not in ([], ["unknown"])


@pytest.mark.parametrize(
    ("file", "elements"),
    [("kept", ELEMENTS), ("kept", SMALL), ("gone", ELEMENTS), ("gone", SMALL), ("damaged", ELEMENTS),
     ("cut", ELEMENTS)],
)  # fmt: skip
async def test_an_aggregator_that_was_killed_goes_on_with_what_it_finds(
    stack: Stack, folder: Path, caplog: pytest.LogCaptureFixture, file: str, elements: int
) -> None:
    run, gate = f"deltas-{file}-{elements}", Gate("fb.update.*.4.*.manifest")
    async with federation(stack.credentials, folder, workers=()) as parties:
        for name in WORKERS:
            await join(parties, name, gate.connection() if name == "d3" else Bus)
        plan = walk(rounds=5, codec={"up": "dense", "down": "ecq"}, train={"elements": elements})
        await parties.start(plan, run)
        await parties.until(gate.reached.is_set, "round 4 is open")
        await parties.aggregator.crash()
        third = parties.round(run, 3).aggregated
        assert third
        assert folder / "models" / "lost" / f"{run}.3.{third.model}" in lost(folder)
        assert len(lost(folder)) <= 2
        for path in lost(folder):
            _harm(path, file)
        await parties.aggregator.start()
        gate.open.set()
        models = await Models(parties, folder, await parties.finished(run)).load()
        # Without it, what was still to be sent is lost, and the next model is whole.
        assert models.whole == ([0, 5] if file == "kept" else [0, 4, 5])
        models.check(forgot=None if file == "kept" else 4)
        assert ("travels whole, without it" in caplog.text) == (file != "kept")


def _harm(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "damaged":
        data[-100] ^= 1  # in the last chunk: the first is published as a difference when it is noticed
    if how == "cut":
        del data[-1:]
    path.write_bytes(data)
    if how == "gone":
        path.unlink()


class Hanging:
    """An aggregator that hangs, with all that it asks, where it names its first difference."""

    def __init__(self) -> None:
        self.hangs, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.may_go_on.set()

        class Hung(Tapped):
            async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
                if fnmatch(subject, "fb.model.m.*") and b"values\x92" in data and not hanging.hangs.is_set():
                    hanging.hangs.set()
                    hanging.may_go_on.clear()
                await hanging.may_go_on.wait()
                return await ask()

        hanging = self
        self.connection = Hung


async def test_an_aggregator_that_hung_leaves_the_others_files_alone(stack: Stack, folder: Path) -> None:
    run, gate, hanging = "deltas-hung", Gate("fb.update.*.3.*.manifest"), Hanging()
    async with federation(stack.credentials, folder, workers=()) as parties:
        await parties.aggregator.stop()
        await parties.aggregator.start(hanging.connection)
        for name in WORKERS:
            await join(parties, name, gate.connection() if name == "d3" else Bus)
        await parties.start(walk(rounds=4, codec={"up": "dense", "down": "ecq"}), run)
        await parties.until(hanging.hangs.is_set, "it publishes the first difference")
        (part,) = lost(folder)
        await parties.add("aggregator", lambda bus: Aggregator(bus, folder).run())
        await parties.until(gate.reached.is_set, "round 3 is open, by the other one")
        assert part.exists()
        hanging.may_go_on.set()
        await parties.until(lambda: not part.exists(), "it goes on")
        gate.open.set()
        models = await Models(parties, folder, await parties.finished(run)).load()
        assert models.whole == [0, 4], "what model 2 lacks was still there"
        models.check()
        await parties.until(lambda: not lost(folder), "nothing of the run is left")


async def test_an_aggregator_deletes_what_a_kill_left_of_runs_that_are_over(
    stack: Stack, folder: Path
) -> None:
    run, gate = "deltas-over", Gate("fb.update.deltas-open.2.*.manifest")
    codecs = {"up": "dense", "down": "ecq"}
    async with federation(stack.credentials, folder, workers=()) as parties:
        for name in WORKERS:
            await join(parties, name, gate.connection())
        await parties.finished(await parties.start(walk(rounds=1, codec=codecs), run))
        await parties.start(walk(rounds=3, codec=codecs), "deltas-open")
        await parties.until(gate.reached.is_set, "round 2 of another run is open")
        await parties.aggregator.crash()
        (kept,) = lost(folder)
        left = [kept.with_name(f"{name}.9.model{end}") for name in (run, "unknown") for end in ("", ".part")]
        for path in left:
            path.write_bytes(b"lost")
        await parties.aggregator.start()
        gate.open.set()
        await parties.until(lambda: not any(path.exists() for path in left), "those of runs that are over go")
        models = await Models(parties, folder, await parties.finished("deltas-open")).load()
        assert models.whole == [0, 3], "that of the open run was still there"
        models.check()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("pattern", "fits", "few"),
    [
        ("fb.model.c.*", lambda data: len(data) < 100_000, 2),
        ("fb.model.m.*", lambda data: b"values\x92" in data, 1),
        ("fb.round.*.2.log.aggregator", lambda data: b'"aggregated"' in data, 0),
    ],
    ids=["chunk", "manifest", "entry"],
)
async def test_an_aggregator_that_was_killed_while_it_published_makes_the_same_model(
    stack: Stack, folder: Path, pattern: str, fits: Callable[[bytes], bool], few: int, stored: bool
) -> None:
    run, gate = f"deltas-{pattern.split('.')[2].strip('*') or 'e'}-{stored}", Gate(pattern, fits, few)
    async with federation(stack.credentials, folder, workers=()) as parties:
        await parties.aggregator.crash()
        await parties.aggregator.start(gate.connection(before=not stored))
        for name in WORKERS:
            await join(parties, name)
        await parties.start(walk(rounds=4, codec={"up": "dense", "down": "ecq"}), run)
        await parties.until(gate.reached.is_set, "it publishes the second difference")
        await parties.until(lambda: parties.round(run, 2).closing, "round 2 is closing")
        await parties.aggregator.crash()
        await parties.aggregator.start()
        models = await Models(parties, folder, await parties.finished(run)).load()
        assert models.whole == [0, 4], "what the first one lacks was still there"
        models.check()


async def test_a_run_that_starts_from_a_difference_begins_with_a_whole_model(
    stack: Stack, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, codecs = Gate("fb.update.deltas-before.3.*.manifest"), {"up": "dense", "down": "ecq"}
    async with federation(stack.credentials, folder, workers=()) as parties:
        for name in WORKERS:
            await join(parties, name, gate.connection() if name == "d3" else Bus)
        await parties.start(walk(rounds=5, codec=codecs), "deltas-before")
        await parties.until(gate.reached.is_set, "round 3 is open")
        await parties.api.abort("deltas-before")
        gate.open.set()
        before = await parties.ended("deltas-before")
        assert before.state == "aborted"
        await parties.until(lambda: not lost(folder), "what its models lack is deleted")

        await parties.start(walk(rounds=3, codec=codecs, model={"from": "deltas-before"}), "deltas-after")
        after = await parties.finished("deltas-after")
        made = [r.model for r in (*before.rounds, *after.rounds) if r.model]
        models = [await read_manifest(parties.operator, digest) for digest in made]
        assert [m.is_delta for m in models] == [True, True, False, True, False]
        first = parties.round("deltas-before", 0).aggregated
        assert first
        # Its members may have nothing of the other run: they download a whole model and two differences.
        sizes = [first.bytes, *(len(m.pack()) + m.size_bytes for m in models[:2])]
        assert after.rounds[0].bytes_down == sum(sizes) * len(WORKERS)
        trained = [np.load(folder / f"{name}.1.npy") for name in WORKERS]
        start = await parties.model(before.rounds[1].model)
        expected = start + np.mean(trained, axis=0, dtype=np.float64)
        np.testing.assert_allclose(await parties.model(after.rounds[0].model), expected, atol=CLOSE)
        assert "travels whole" not in caplog.text


@pytest.mark.parametrize("elements", [SMALL, ELEMENTS])
async def test_two_aggregators_make_one_model(stack: Stack, folder: Path, elements: int) -> None:
    run = f"deltas-two-{elements}"
    async with federation(stack.credentials, folder, workers=(), aggregators=2) as parties:
        for name in WORKERS:
            await join(parties, name)
        codecs = {"up": "dense", "down": "ecq", "full_every": 4}
        await parties.start(walk(rounds=6, codec=codecs, train={"elements": elements}), run)
        models = await Models(parties, folder, await parties.finished(run)).load()
        assert models.whole == [0, 4, 6]
        models.check()

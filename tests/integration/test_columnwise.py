"""Strategies that read all updates once more when a round is closed: median and trimmed mean."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.base.errors import RoundError
from fedbus.bus import Bus, Message
from fedbus.bus.models import read_manifest
from fedbus.bus.provision import provision
from fedbus.bus.store import READS_IN_FLIGHT, purge
from fedbus.codec import Vector
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus.strategies import Columnwise, strategy
from fedbus_aggregator import columns
from fedbus_aggregator.columns import Columns, needed_bytes
from fedbus_aggregator.reading import Corrupted
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.messages import Announcement
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec
from support.buses import Ask, Tapped, buses
from support.federation import Parties, federation
from support.natsd import Stack
from support.scripted import Answer, Scripted, Update

ELEMENTS = 2 * CHUNK_ELEMENTS + 1000  # three chunks
HONEST = ("a", "b", "c", "d")
HUGE = 1e25  # times its examples still within what float32 adds up


def values_of(name: str, number: int) -> Vector:
    """What a worker sends in a round; so that a test can combine it by itself."""
    if name == "hostile":
        return np.full(ELEMENTS, HUGE, np.float32) * np.float32((-1) ** number)
    rng = np.random.default_rng([number, *name.encode()])
    return rng.standard_normal(ELEMENTS).astype(np.float32)


def oracle(rule: str, names: tuple[str, ...], rounds: int) -> Vector:
    """The model after so many rounds."""
    model = np.zeros(ELEMENTS, np.float32)
    for number in range(1, rounds + 1):
        rows = np.sort([values_of(name, number).astype(np.float64) for name in names], axis=0)
        kept = rows[1:-1].mean(axis=0) if rule == "trimmed_mean" else np.median(rows, axis=0)
        model += kept.astype(np.float32)
    return model


def answer(sent: dict[str, Update] | None = None) -> Answer:
    async def send(worker: Scripted, news: Announcement) -> None:
        update = worker.make(
            news, values_of(worker.name, news.round), 10**6 if worker.name == "hostile" else 1
        )
        await worker.send(update)
        if sent is not None:
            sent[worker.name] = update

    return send


def plan(strategy: Any = "median", rounds: int = 1, cohort: int = 5) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "rounds": rounds,
        "train": {"elements": ELEMENTS},
        "cohort": {"min": cohort},
        "close": {"quorum": 3},
    }


class Reads:
    """Holds the reads of a round's chunks once it is closed, all that come after the first few."""

    def __init__(self, parties: Parties, run: str, first: int) -> None:
        self.held = asyncio.Event()
        self.go_on = asyncio.Event()
        prefix, seen = f"$JS.API.DIRECT.GET.{subjects.UPDATES}.fb.update.{run}.1.", list[str]()

        class Holding(Tapped):
            async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
                if subject.startswith(prefix) and parties.round(run, 1).closing:
                    if subject.rpartition(".")[2].isdigit():
                        seen.append(subject)
                    if len(seen) > first:
                        holding.held.set()
                        await holding.go_on.wait()
                return await ask()

        holding = self
        self.connection = Holding


@pytest.mark.parametrize("strategy", ["median", {"name": "trimmed_mean", "trim": 0.2}])
async def test_a_worker_that_sends_huge_values_changes_nothing(
    stack: Stack, tmp_path: Path, strategy: Any
) -> None:
    rule = strategy if isinstance(strategy, str) else strategy["name"]
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in (*HONEST, "hostile"):
            await parties.script(name, answer())
        report = await parties.finished(await parties.start(plan(strategy, rounds=3), f"huge-{rule}"))
        assert [r.accepted for r in report.rounds] == [5, 5, 5]
        model = await parties.model(report.model)
        expected = oracle(rule, (*HONEST, "hostile"), rounds=3)
        if rule == "median":
            assert model.tobytes() == expected.tobytes()
        np.testing.assert_allclose(model, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(model).max() < 20


async def test_an_aggregator_that_crashes_in_the_second_read_makes_the_same_model(
    stack: Stack, tmp_path: Path
) -> None:
    names = (*HONEST, "hostile")
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in names:
            await parties.script(name, answer())
        # The first chunk is combined and published by then, and not the last one.
        reads = Reads(parties, "crashes", first=len(names) + 1)
        await parties.aggregator.stop()
        await parties.aggregator.start(reads.connection)
        run = await parties.start(plan(), "crashes")
        async with asyncio.timeout(30):
            await reads.held.wait()
        await parties.aggregator.crash()
        assert parties.round(run, 1).aggregated is None
        await parties.aggregator.start()
        report = await parties.finished(run)
        assert (await parties.model(report.model)).tobytes() == oracle("median", names, 1).tobytes()
        # A model's digest also says its run; that of each chunk says the values only.
        undisturbed = await parties.finished(await parties.start(plan(), "undisturbed"))
        models = [await read_manifest(parties.operator, r.model or "") for r in (report, undisturbed)]
        assert models[0].chunks == models[1].chunks


async def test_a_chunk_that_changed_before_the_second_read_voids_its_update(
    stack: Stack, tmp_path: Path
) -> None:
    sent: dict[str, Update] = {}
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in HONEST:
            await parties.script(name, answer(sent))
        reads = Reads(parties, "changes", first=0)
        await parties.aggregator.stop()
        await parties.aggregator.start(reads.connection)
        run = await parties.start(plan(cohort=4), "changes")
        async with asyncio.timeout(30):
            await reads.held.wait()
        planner = await Bus.connect(stack.credentials("planner"))
        await purge(planner, subjects.UPDATES, sent["b"].subject(1))
        await planner.close()
        other = parties.scripted["b"].make(parties.scripted["b"].news[run, 1], values_of("a", 7))
        changed = Update(sent["b"].manifest, other.chunks, sent["b"].seat)
        await parties.scripted["b"].send(changed, [1])
        reads.go_on.set()
        report = await parties.finished(run)
        (refused,) = report.rounds[0].rejected
        assert (refused.worker, refused.code) == ("b", "voided")
        assert refused.reason.startswith("chunk 1: SHA-256 is ")
        assert [v.chunk for v in parties.round(run, 1).voided] == [1]
        assert sorted(u.worker for u in report.rounds[0].accepted_updates) == ["a", "c", "d"]
        expected = oracle("median", ("a", "c", "d"), 1)
        assert (await parties.model(report.model)).tobytes() == expected.tobytes()


async def test_small_updates_travel_inside_their_manifests(stack: Stack, tmp_path: Path) -> None:
    """Real workers; there are more of them than reads in flight."""
    names = [f"w{number}" for number in range(3)]
    async with federation(stack.credentials, tmp_path, workers=names) as parties:
        for number in range(READS_IN_FLIGHT):
            await parties.script(f"s{number}", _small)
        values = {"train": {"elements": 1000, "value": 1.0}, "cohort": {"min": 3 + READS_IN_FLIGHT}}
        report = await parties.finished(
            await parties.start({"strategy": "median", "rounds": 2, **values}, "small")
        )
        # Three say 1, the others 0 to 7: the middle of eleven is 2, in each round.
        assert (await parties.model(report.model) == 4.0).all()


async def test_too_little_memory_is_told_before_anything_is_read(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred updates of one chunk, 1 MB each inside its manifest, of which nothing is stored."""
    ref, elements, size = RoundRef("no-room", 2), 250_000, 1_000_500
    updates = [
        AcceptedUpdate(worker=f"w{i}", attempt="1", digest="0" * 64, seq=i, weight=1.0, bytes=size)
        for i in range(100)
    ]
    table = [TensorSpec(name="w", shape=(elements,), dtype="float32")]
    needs = needed_bytes(Grid.of(table), updates)
    assert 100 * (size + 4 * elements) < needs < 201e6
    plan = Plan.model_validate({"task": "noop", "strategy": "median"})
    rule = strategy("median", {})
    assert isinstance(rule, Columnwise)
    async with buses(*map(stack.credentials, ("planner", "aggregator"))) as (planner, bus):
        await provision(planner)
        # Of what is free, a fifth is left alone.
        monkeypatch.setattr(columns, "available_memory", lambda: needs * 5 // 4 - 2)
        with pytest.raises(RoundError, match=r"need 200 MB, .* has 250 MB free"):
            await Columns.open(bus, plan, rule, ref, updates, table)
        monkeypatch.setattr(columns, "available_memory", lambda: needs * 5 // 4 + 2)
        with pytest.raises(Corrupted):
            await Columns.open(bus, plan, rule, ref, updates, table)


async def _small(worker: Scripted, news: Announcement) -> None:
    update = worker.make(news, np.full(1000, float(worker.name[1:]), np.float32))
    if int(worker.name[1:]) % 2:
        await worker.send(update)  # its chunk travels beside the manifest
    else:
        await worker.send(update.saying(body=update.chunks[0]), ["manifest"])

"""Parties that crash, restart or run twice: no update is lost, none is counted twice."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus import Bus, Message
from fedbus.bus.store import get
from fedbus_aggregator.service import Aggregator
from fedbus_planner.service import Planner
from fedbus_schemas import subjects
from fedbus_schemas.messages import Progress
from fedbus_schemas.update import UpdateManifest
from fedbus_worker.record import Record
from fedbus_worker.spool import SpooledUpdate
from support.buses import Ask, Tapped
from support.federation import federation
from support.natsd import Stack, broker
from support.roundlog import check_once
from support.scripted import honest

ONES = np.ones(25_000, np.float32)
ELEMENTS = 3_100_000  # 13 chunks
CHUNKS = 13


def counting(puts: dict[str, str], run: str, hold_after: int | None = None) -> type[Bus]:
    """A connection that notes the SHA-256 of what it puts for round 1, and stops after so many puts."""

    class Counting(Tapped):
        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            if subject.startswith(f"fb.update.{run}.1."):
                if hold_after is not None and len(puts) >= hold_after:
                    await asyncio.Event().wait()
                puts[subject] = hashlib.sha256(data).hexdigest()
            return await ask()

    return Counting


async def test_of_an_upload_is_told_what_is_acknowledged(stack: Stack, tmp_path: Path) -> None:
    told: list[Progress] = []
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.api.hear_progress(told.append)
        await parties.join("slow", connection=counting({}, "slow-link", hold_after=5))
        await parties.start({"train": {"elements": ELEMENTS}}, "slow-link")
        await parties.until(lambda: any(p.round == 1 and p.phase == "upload" for p in told), "it is told")
        await parties.until(lambda: told[-1].fraction == 5 / CHUNKS, "as far as it is")
        phases = [p.phase for p in told if p.round == 1]
        assert set(phases[phases.index("upload") :]) == {"upload"}


@pytest.mark.parametrize("codec", ["dense", "ecq"])
async def test_a_worker_that_crashed_in_mid_upload_resumes_with_what_was_not_acknowledged(
    stack: Stack, tmp_path: Path, codec: str
) -> None:
    run, held = f"resumes-{codec}", 5
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        first: dict[str, str] = {}
        worker = await parties.join("crasher", connection=counting(first, run, hold_after=held))
        plan = {"train": {"elements": ELEMENTS, "value": 2.0}, "codec": {"up": codec}}
        await parties.start(plan, run)
        spool = parties.state_of("crasher") / "spool" / f"{run}.0"
        # The folder was round 0's, too.
        await parties.until(lambda: len(first) == held and _stored(spool) == held, "five are acknowledged")
        record = Record(spool / "update", SpooledUpdate)
        found = record.read()
        assert found
        assert (found[0].round, found[0].manifest) == (1, None)
        await worker.crash()
        again: dict[str, str] = {}
        await worker.start(counting(again, run))
        report = await parties.finished(run)
        leaves = sorted(subjects.parse_update(s)[5] for s in again)
        assert len(leaves) == CHUNKS - held + 1, leaves
        assert not set(first) & set(again), "nothing acknowledged is sent again"
        assert {subjects.parse_update(s)[4] for s in first | again} == {found[0].attempt}
        sent = {subjects.parse_update(s)[5]: digest for s, digest in (first | again).items()}
        (manifest,) = [s for s in again if s.endswith(".manifest")]
        stored = UpdateManifest.unpack((await get(parties.operator, subjects.UPDATES, manifest)).data)
        # What a damage changes has another digest.
        assert [sent[str(i)] for i in range(CHUNKS)] == stored.chunks
        assert report.rounds[0].accepted_updates[0].digest == sent["manifest"]
        await check_once(parties, report, workers=1, total=2.0)


async def test_what_a_power_cut_damaged_is_trained_again_under_another_attempt(
    stack: Stack, tmp_path: Path
) -> None:
    """All chunks are acknowledged, and the manifest is not when the machine goes down."""
    run = "damaged"
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        first: dict[str, str] = {}
        worker = await parties.join("cut", connection=counting(first, run, hold_after=CHUNKS))
        await parties.start({"train": {"elements": ELEMENTS, "value": 2.0}}, run)
        spool = parties.state_of("cut") / "spool" / f"{run}.0"
        await parties.until(lambda: len(first) == CHUNKS and _offering(spool), "the manifest is written")
        await worker.crash()
        record = Record(spool / "update", SpooledUpdate)
        found = record.read()
        assert found
        record.write(found[0].model_copy(update={"boot": "before the power cut"}), found[1])
        with (spool / "delta.f32").open("r+b") as delta:
            delta.seek(8_000_000)
            delta.write(bytes(4096))
        again: dict[str, str] = {}
        await worker.start(counting(again, run))
        report = await parties.finished(run)
        assert report.rounds[0].accepted == 1
        attempts = [{subjects.parse_update(s)[4] for s in puts} for puts in (first, again)]
        assert attempts[0] < attempts[1], "what was not damaged was sent before the damage was found"
        await check_once(parties, report, workers=1, total=2.0)


def _offering(spool: Path) -> bool:
    found = Record(spool / "update", SpooledUpdate).read()
    return found is not None and found[0].round == 1 and found[0].manifest is not None


def _stored(spool: Path) -> int:
    path = spool / "stored"
    return path.read_bytes().count(b"\x01") if path.exists() else 0


async def test_two_instances_of_each_service_do_everything_once(stack: Stack, tmp_path: Path) -> None:
    async with federation(
        stack.credentials, tmp_path, workers=["real"], planners=2, aggregators=2
    ) as parties:
        for name in ("a", "b"):
            await parties.script(name, honest(ONES))
        plan = {"rounds": 5, "cohort": {"min": 3}, "train": {"value": 1.0}}
        report = await parties.finished(await parties.start(plan, "doubled"))
        assert [r.cohort for r in report.rounds] == [report.rounds[0].cohort] * 5
        await check_once(parties, report, workers=3, total=5.0)


class Selfish(Tapped):
    """A connection on which every instance gets the lease."""

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        if subject == subjects.lease("aggregator"):
            return Message(subject, b'{"seq": 1}', {})
        return await ask()


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
async def test_two_aggregators_that_work_at_once_do_everything_once(
    stack: Stack, tmp_path: Path, strategy: str
) -> None:
    """The lease saves work. Who has it wrongly does no harm."""
    async with federation(stack.credentials, tmp_path, workers=(), aggregators=2) as parties:
        for aggregator in parties.aggregators:
            await aggregator.stop()
            await aggregator.start(Selfish)
        for name in ("a", "b", "c"):
            await parties.script(name, honest(ONES))
        plan = {"rounds": 5, "cohort": {"min": 3}, "strategy": strategy}
        report = await parties.finished(await parties.start(plan, f"at-once-{strategy}"))
        await check_once(parties, report, workers=3, total=5.0)


@pytest.mark.parametrize("entry", ["opened", "accepted", "closing", "aggregated"])
@pytest.mark.parametrize("service", ["planner", "aggregator"])
async def test_a_service_crashes_when_an_entry_is_seen(
    stack: Stack, tmp_path: Path, service: str, entry: str
) -> None:
    run = f"{service}-{entry}"
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in ("a", "b", "c"):
            await parties.script(name, honest(ONES))
        await parties.start({"cohort": {"min": 3}}, run)
        await parties.until(lambda: getattr(parties.round(run, 1), entry), f"{entry} is in the log")
        party = getattr(parties, service)
        await party.crash()
        await party.start()
        await check_once(parties, await parties.finished(run), workers=3, total=1.0)


async def test_a_broker_killed_in_mid_round_comes_back_and_the_run_ends(tmp_path: Path) -> None:
    run, plan = "outlives", {"train": {"elements": ELEMENTS, "value": 1.0}, "cohort": {"min": 3}}
    async with broker(tmp_path) as own, federation(own.credentials, tmp_path) as parties:
        await parties.start({"rounds": 2, **plan}, run)
        await parties.until(lambda: parties.round(run, 1).opened, "round 1 opens")
        spools = [parties.state_of(name) / "spool" / f"{run}.0" for name in parties.workers]
        await parties.until(lambda: any(map(_stored, spools)), "an upload is under way")
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.restart)
        report = await parties.finished(run)
        await check_once(parties, report, workers=3, total=2.0)
        assert [r.lost for r in report.rounds] == [[], []]


@pytest.mark.parametrize("service", [Planner, Aggregator])
async def test_a_service_starts_while_the_broker_is_away(
    tmp_path: Path, service: type[Planner] | type[Aggregator]
) -> None:
    identity = service.__name__.lower()
    async with (
        broker(tmp_path) as own,
        federation(own.credentials, tmp_path, workers=(), planners=1, aggregators=1) as parties,
    ):
        await getattr(parties, identity).stop()
        await parties.script("a", honest(ONES))
        await asyncio.to_thread(own.kill)
        bus = Bus(own.credentials(identity), identity)
        connecting = asyncio.create_task(bus._trying.until_open(bus._open))
        serving = asyncio.create_task(service(bus).run())
        await asyncio.to_thread(own.restart)
        try:
            await connecting
            await parties.operator.wait_up()
            await parties.finished(await parties.start({"cohort": {"min": 1}}, "late-start"))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await bus.close()

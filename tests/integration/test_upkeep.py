"""What a planner writes beside the log: seldom while rounds are quick, and all of it at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fedbus.base.errors import NotAcked
from fedbus.bus import Message
from fedbus.bus.runs import Runs
from fedbus.bus.store import list_subjects
from fedbus.telemetry.stored import read_spans
from fedbus_planner import upkeep
from fedbus_schemas import subjects
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import Stack
from support.scripted import honest

ONES = np.ones(25_000, np.float32)


def counting(asked: Counter[str]) -> type[Tapped]:
    """A connection that counts what is asked: by bucket, where a value is written, else by subject."""

    class Counting(Tapped):
        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            asked[subject.split(".")[1] if subject.startswith("$KV.") else subject] += 1
            return await ask()

    return Counting


class Dying(Tapped):
    """A planner's connection that goes no further once round 3 is finished; no span gets out."""

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        answer = await ask()
        if subject.endswith(".3.log.planner") and b'"kind":"finished"' in data:
            await asyncio.Event().wait()
        return answer

    async def publish(self, subject: str, data: bytes) -> None:
        if subject != subjects.otel("planner"):
            await super().publish(subject, data)


async def done(parties: Parties, run: str) -> bool:
    return (await Runs(parties.operator).get(run))[0].done


async def test_quick_rounds_share_what_is_written_and_the_end_leaves_it_exact(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_S", 1000.0)
    asked: Counter[str] = Counter()
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.planner.stop()
        await parties.planner.start(counting(asked))
        await parties.script("a", honest(ONES))
        run = await parties.start({"rounds": 8, "retain": {"rounds": 1}}, "shares")
        await parties.finished(run)
        await parties.until_true(lambda: done(parties, run), "the run is over")
        record, _ = await Runs(parties.operator).get(run)
        assert record.open_round == 8
        assert record.open_seq == parties.round(run, 8).first_seq
        # Its start, its first round where others wrote to the log meanwhile, its last round, its end.
        assert asked[subjects.RUNS_BUCKET] <= 4
        assert asked[f"$JS.API.STREAM.PURGE.{subjects.UPDATES}"] == 1, "one purge for all rounds"
        kept = await list_subjects(parties.operator, subjects.UPDATES, f"fb.update.{run}.>")
        assert {subjects.parse_update(each)[1] for each in kept} == {7, 8}


async def test_a_planner_that_adopts_a_run_whose_record_is_behind_makes_up_for_it(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_S", 1000.0)
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.planner.stop()
        await parties.planner.start(Dying)
        await parties.script("a", honest(ONES))
        run = await parties.start({"rounds": 5, "retain": {"rounds": 0}}, "behind")
        await parties.until(lambda: parties.round(run, 3).finished, "round 3 is finished")
        await parties.planner.crash()
        assert (await Runs(parties.operator).get(run))[0].open_round == 0
        (told,) = [each for each in await parties.api.runs() if each.run == run]
        assert told.rounds_done == 3, "a list of runs is not behind"
        await parties.planner.start()
        assert [r.accepted for r in (await parties.finished(run)).rounds] == [1] * 5
        await parties.until_true(lambda: done(parties, run), "the run is over")
        for number in range(1, 6):
            opened = parties.round(run, number).opened
            assert opened is not None
            spans = await read_spans(parties.operator, opened.trace_id, opened.at)
            assert [s.span_id for s in spans if s.parent_id is None] == [opened.span_id]
        kept = await list_subjects(parties.operator, subjects.UPDATES, f"fb.update.{run}.>")
        assert {subjects.parse_update(each)[1] for each in kept} == {5}


class Unpurged(Tapped):
    """A planner's connection on which no purge is answered, until a test says so."""

    answers = False

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        if subject.startswith("$JS.API.STREAM.PURGE.") and not self.answers:
            raise NotAcked("nobody answers")
        return await ask()


async def test_what_cannot_be_written_beside_the_log_holds_no_round_up(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_S", 0.02)
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.planner.stop()
        await parties.planner.start(Unpurged)
        await parties.script("a", honest(ONES))
        run = await parties.start({"rounds": 5, "retain": {"rounds": 1}}, "unpurged")
        await parties.until(lambda: parties.round(run, 5).aggregated, "round 5 is aggregated")
        monkeypatch.setattr(Unpurged, "answers", True)
        await parties.until_true(lambda: done(parties, run), "the run is over")
        assert caplog.messages.count("upkeep put off: nobody answers") == 1
        kept = await list_subjects(parties.operator, subjects.UPDATES, f"fb.update.{run}.>")
        assert {subjects.parse_update(each)[1] for each in kept} == {4, 5}

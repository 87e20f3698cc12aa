"""How a round ends: at its target, at its deadline, when nobody is left; and what a run waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from fedbus.cli.output import mishaps
from fedbus_aggregator import service
from fedbus_schemas.log import Accepted, decode_entry
from fedbus_schemas.messages import Announcement
from support.federation import federation
from support.natsd import Stack
from support.roundlog import entries
from support.scripted import Scripted, honest, lying

ONES = np.ones(25_000, np.float32)
NAN = np.full(25_000, np.nan, np.float32)


async def test_over_selection_closes_at_the_target(stack: Stack, tmp_path: Path) -> None:
    cohort = {"min": 2, "fraction": 0.5, "over_select": 2.0}
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in ("quick", "quicker"):
            await parties.script(name, honest(ONES))
        for name in ("silent", "still"):
            await parties.script(name)
        (round_,) = (await parties.finished(await parties.start({"cohort": cohort}, "over"))).rounds
        assert sorted(round_.cohort) == ["quick", "quicker", "silent", "still"]
        assert sorted(u.worker for u in round_.accepted_updates) == ["quick", "quicker"]
        assert (round_.reason, round_.lost, round_.rejected) == (None, [], [])
        assert round_.seconds
        assert round_.seconds < 15, "nobody waited for the deadline"


async def test_updates_that_come_together_are_accepted_by_one_entry_and_none_waits_for_it(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "VERDICT_S", 1000.0)
    names = ("a", "b", "c", "d")
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in names:
            await parties.script(name, honest(ONES))
        await parties.finished(await parties.start({"rounds": 2, "cohort": {"min": 4}}, "together"))
        for number in (1, 2):
            logged = [decode_entry(each.data) for each in await entries(parties.operator, "together", number)]
            (verdict,) = [each for each in logged if isinstance(each, Accepted)]
            assert sorted(update.worker for update in verdict.updates) == [*names]


async def test_an_update_is_accepted_while_others_are_silent(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(ONES))
        silent = await parties.script("silent")
        run = await parties.start({"cohort": {"min": 2}}, "alone")
        await parties.until(lambda: parties.round(run, 1).accepted, "the update is accepted")
        assert parties.round(run, 1).state == "open"
        await silent.beat(leaving=True)
        assert (await parties.finished(run)).rounds[0].accepted == 1


async def test_a_quorum_closes_at_the_deadline(stack: Stack, tmp_path: Path) -> None:
    plan = {"cohort": {"min": 3}, "close": {"deadline_s": 2.0, "quorum": 2}}
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(ONES, 1))
        await parties.script("b", honest(5 * ONES, 3))
        await parties.script("silent")
        report = await parties.finished(await parties.start(plan, "quorum"))
        (round_,) = report.rounds
        assert sorted(u.worker for u in round_.accepted_updates) == ["a", "b"]
        assert round_.reason == "deadline of 2 s passed: have 2 updates, quorum 2"
        assert round_.seconds
        assert round_.seconds >= 2.0
        np.testing.assert_allclose(await parties.model(report.model), 4.0, rtol=1e-6)


async def test_too_few_at_the_deadline_abort_the_run(stack: Stack, tmp_path: Path) -> None:
    plan = {"rounds": 3, "cohort": {"min": 2}, "close": {"deadline_s": 2.0, "quorum": 2}}
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(ONES))
        await parties.script("silent")
        report = await parties.ended(await parties.start(plan, "too-few"))
        assert report.state == "aborted"
        assert [r.state for r in report.rounds] == ["aborted"]
        assert report.reason == "deadline of 2 s passed: have 1 updates, quorum 2"
        assert report.rounds[0].waiting == []


async def test_a_round_with_nobody_left_aborts_at_once(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("sick", honest(NAN))
        leaver = await parties.script("leaver")
        run = await parties.start({"cohort": {"min": 2}}, "nobody")
        await parties.until(lambda: parties.round(run, 1).rejected, "the NaN is rejected")
        await leaver.beat(leaving=True)
        report = await parties.ended(run)
        assert report.state == "aborted"
        assert report.reason
        assert report.reason.startswith("nobody is left to wait for: have 0 updates, quorum 1")
        assert [(r.worker, r.code) for r in report.rounds[0].rejected] == [("sick", "chunk-refused")]
        assert [(w.worker, w.code, w.reason) for w in report.rounds[0].lost] == [
            ("leaver", "left", "leaver left")
        ]


async def test_a_run_says_what_it_waits_for_and_goes_on_when_a_worker_joins(
    stack: Stack, tmp_path: Path
) -> None:
    plan = {"cohort": {"min": 2, "require": {"site": "north"}}}
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        run = await parties.start(plan, "waits")
        assert (await parties.api.run(run)).state == "waiting"
        assert await parties.waits(run, "have 0") == "have 0 of 2 eligible workers"
        await parties.script("lone", honest(ONES), site="north")
        await parties.script("south", honest(ONES), site="south")
        said = await parties.waits(run, "south excluded")
        assert said == (
            "have 1 of 2 eligible workers; south excluded: labels do not match: site is south, wanted north"
        )
        await parties.join("real", labels={"site": "north"})
        report = await parties.finished(run)
        assert sorted(report.rounds[0].cohort) == ["lone", "real"]
        assert report.rounds[0].accepted == 2


async def test_what_holds_a_run_up_is_shown_with_its_code(stack: Stack, tmp_path: Path) -> None:
    may_send = asyncio.Event()

    async def answer(worker: Scripted, news: Announcement) -> None:
        await may_send.wait()
        await worker.send(worker.make(news, ONES))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        run = await parties.start({"close": {"deadline_s": 1.0}}, "held-up")
        await parties.waits(run, "have 0 of 1")
        assert (await parties.api.run(run)).code == "workers"
        worker = await parties.script("a", answer)
        await parties.until(lambda: parties.round(run, 1).opened, "round 1 opens")
        await parties.aggregator.crash()
        may_send.set()
        await parties.until(lambda: (run, 1) in worker.sent, "the update is stored")
        await parties.waits(run, "are stored and not judged yet")
        async for watched in parties.api.watch(run):
            if watched.code is not None:
                break
        for report in (watched, await parties.api.run(run)):
            assert (report.code, report.reason) == (
                "aggregator-behind",
                "updates of a are stored and not judged yet",
            )
        await parties.planner.crash()
        gone = await parties.api.run(run)
        assert (gone.code, gone.reason) == ("bus-unavailable", "the planner does not answer")
        await parties.planner.start()
        await parties.aggregator.start()
        assert (await parties.finished(run)).rounds[0].accepted == 1


async def test_a_worker_without_the_task_is_left_out_by_name_and_the_others_go_on(
    stack: Stack, tmp_path: Path
) -> None:
    may_end = asyncio.Event()

    async def answer(worker: Scripted, news: Announcement) -> None:
        await may_end.wait()
        await worker.send(worker.make(news, ONES))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("lacks", honest(ONES), tasks=("digits",))
        await parties.script("has", answer)
        run = await parties.start({"rounds": 2}, "lacks")
        await parties.until(lambda: parties.round(run, 1).opened, "round 1 opens")
        (said,) = await parties.api.members.why("lacks", run)
        assert (said.code, said.reason) == ("task", "task noop is not installed there")
        may_end.set()
        report = await parties.finished(run)
        for round_ in report.rounds:
            assert (round_.cohort, round_.accepted) == (["has"], 1)
            assert [(e.worker, e.code, e.reason) for e in round_.excluded] == [
                ("lacks", "task", "task noop is not installed there")
            ]
        # What stays as it is is said once.
        assert mishaps(report) == ["lacks/1: lacks excluded: task noop is not installed there [task]"]


async def test_a_lying_worker_does_not_keep_the_others_from_their_model(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("good", honest(ONES, 4))
        await parties.script("bad", lying(7 * ONES, lambda update: update.saying(num_examples=1, round=3)))
        report = await parties.finished(await parties.start({"rounds": 2, "cohort": {"min": 2}}, "liar"))
        assert [[r.worker for r in each.rejected] for each in report.rounds] == [["bad"], ["bad"]]
        assert (await parties.model(report.model) == 2.0).all()

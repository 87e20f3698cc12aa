"""The operator ends a run: the open round is aborted, and its workers stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedbus.base.errors import RunEnded, UnknownRun
from fedbus_schemas.messages import Announcement
from support.federation import federation
from support.natsd import Stack
from support.scripted import Scripted


async def test_the_open_round_is_aborted_and_its_workers_stop(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=("w1", "w2")) as parties:
        told: list[str] = []
        await parties.api.hear_progress(lambda p: told.append(p.worker) if p.round == 1 else None)
        plan = {"rounds": 5, "train": {"seconds": 60.0}, "cohort": {"min": 2}}
        run = await parties.start(plan, "ended-by-hand")
        await parties.until(lambda: {"w1", "w2"} <= set(told), "both train")
        assert await parties.api.abort(run, "wrong data") == "wrong data"
        report = await parties.ended(run)
        assert (report.state, report.reason) == ("aborted", "wrong data")
        (round_,) = report.rounds
        assert (round_.state, round_.reason, round_.accepted) == ("aborted", "wrong data", 0)
        aborted = parties.round(run, 1).aborted
        assert aborted
        assert aborted.code == "operator"
        # Their children are free at once: a round of the next run is not behind a minute of training.
        after = await parties.finished(await parties.start({"cohort": {"min": 2}}, "after-it"))
        assert after.rounds[0].accepted == 2
        with pytest.raises(UnknownRun, match="did you mean 'ended-by-hand'"):
            await parties.api.abort("ended-by-hnd")
        with pytest.raises(RunEnded, match="after-it is over already"):
            await parties.api.abort("after-it")
        assert await parties.api.abort(run, "again") == "wrong data", "the first wish stands"


async def test_a_run_that_waits_for_workers_ends_and_stays_ended(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        run = await parties.start({"cohort": {"min": 3}}, "never-began")
        await parties.waits(run, "have 0 of 3")
        await parties.api.abort(run)
        report = await parties.ended(run)
        assert (report.state, report.reason, report.rounds) == ("aborted", "aborted by the operator", [])
        await parties.planner.stop()
        await parties.planner.start()
        for name in ("n1", "n2", "n3"):
            await parties.script(name)
        assert (await parties.api.run(run)).state == "aborted"
        assert not parties.round(run, 0).opened


async def test_a_run_that_ends_between_rounds_waits_for_no_score(stack: Stack, tmp_path: Path) -> None:
    """The next round's members would have scored the last model: nobody will, and the log says so."""
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:

        async def stays(worker: Scripted, news: Announcement) -> None:
            await parties.until(lambda: parties.round(news.run, 1).lost, "the other one has left")
            await worker.send(worker.make(news, np.ones(25_000, np.float32)))

        async def leaves(worker: Scripted, news: Announcement) -> None:
            await worker.beat(leaving=True)

        await parties.api.wait_for("evaluator")  # else a watch waits for no score at all
        await parties.script("stays", stays)
        await parties.script("leaves", leaves)
        plan = {"rounds": 3, "cohort": {"min": 2}, "close": {"quorum": 1}}
        run = await parties.start(plan | {"evaluate": {"central": False, "federated": True}}, "between")
        await parties.waits(run, "have 1 of 2")
        await parties.api.abort(run, "enough")
        report = await parties.ended(run)
        assert (report.state, report.reason) == ("aborted", "enough")
        await parties.until(lambda: parties.round(run, 1).federated, "the log says so")
        entry = parties.round(run, 1).federated
        assert entry is not None
        assert entry.federated is not None
        assert {each.code for each in entry.federated.failed} == {"run-ended"}

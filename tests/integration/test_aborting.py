"""The operator ends a run: the open round is aborted, and its workers stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.base.errors import RunEnded, UnknownRun
from support.federation import federation
from support.natsd import Stack


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

"""What goes wrong with one run or one update stays there: the others go on, and somebody says why."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fedbus.api.federation import Federation
from fedbus.base.errors import FedbusError, PlanRefused, UnknownName, UnknownRun
from fedbus.bus import Bus, Message
from fedbus.bus.micro import ask
from fedbus.bus.registry import Registry
from fedbus.bus.store import STREAM_FULL, list_subjects, purge
from fedbus_evaluator.service import Evaluator
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement, Started, StartRun
from support.answers import error
from support.buses import Ask, Tapped
from support.federation import federation
from support.natsd import Stack
from support.scripted import Scripted, honest

ONES = np.ones(25_000, np.float32)


async def test_an_accepted_update_that_vanishes_is_voided_and_other_runs_go_on(
    stack: Stack, tmp_path: Path
) -> None:
    told = asyncio.Event()

    async def when_told(worker: Scripted, news: Announcement) -> None:
        if news.run == "vanishes":
            await told.wait()
        await worker.send(worker.make(news, 3 * ONES))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(7 * ONES))
        await parties.script("b", honest(1 * ONES))
        await parties.script("c", when_told)
        await parties.start({"cohort": {"min": 3}}, "vanishes")
        await parties.until(lambda: len(parties.round("vanishes", 1).accepted) == 2, "a and b are accepted")
        await parties.aggregator.crash()
        planner = await Bus.connect(stack.credentials("planner"))
        await purge(planner, subjects.UPDATES, "fb.update.vanishes.1.a.>")
        await planner.close()
        await parties.aggregator.start()
        await parties.script("d", honest(ONES))
        other = await parties.finished(
            await parties.start({"cohort": {"min": 1}, "close": {"target": 1}}, "beside")
        )
        assert other.state == "finished"
        told.set()
        report = await parties.finished("vanishes")
        (refused,) = report.rounds[0].rejected
        assert (refused.worker, refused.code) == ("a", "voided")
        assert "is not stored" in refused.reason
        assert [u.worker for u in report.rounds[0].accepted_updates] == ["b", "c"]
        np.testing.assert_allclose(await parties.model(report.model), 2.0, rtol=1e-6)


async def test_runs_that_wait_without_an_entry_outlive_the_planner_that_took_them(
    stack: Stack, tmp_path: Path
) -> None:
    async with federation(stack.credentials, tmp_path, workers=(), planners=2) as parties:
        runs = [await parties.start({"cohort": {"min": 1}}, f"orphan-{i}") for i in range(5)]
        await parties.planners[0].crash()
        await parties.script("a", honest(ONES))
        for run in runs:
            await parties.finished(run)


async def test_a_command_that_is_repeated_starts_one_run(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        command = StartRun(plan={"task": "noop", "rounds": 1}, token="once")
        first = await ask(parties.operator, "planner", "start", command, Started)
        again = await ask(parties.operator, "planner", "start", command, Started)
        assert first == again
        named = StartRun(plan={"task": "noop", "rounds": 1}, name="commanded", token="named")
        assert (await ask(parties.operator, "planner", "start", named, Started)).run == "commanded"
        assert (await ask(parties.operator, "planner", "start", named, Started)).run == "commanded"
        other = named.model_copy(update={"token": "another"})
        with pytest.raises(PlanRefused, match="a run called 'commanded' exists already"):
            await ask(parties.operator, "planner", "start", other, Started)


async def test_plans_that_are_refused_leave_the_run_that_goes_on_alone(stack: Stack, tmp_path: Path) -> None:
    may_end = asyncio.Event()

    async def answer(worker: Scripted, news: Announcement) -> None:
        if news.run == "unmoved":  # runs that other tests left open want an answer, too
            await may_end.wait()
        await worker.send(worker.make(news, ONES))

    refusals: list[tuple[dict[str, object], type[FedbusError], str]] = [
        ({"rouds": 3}, PlanRefused, "rouds: unknown key; did you mean 'rounds'?"),
        ({"rounds": "many"}, PlanRefused, "rounds: Input should be a valid integer"),
        ({"strategy": "fedavgg"}, UnknownName, "unknown strategy 'fedavgg'; did you mean 'fedavg'?"),
        ({"codec": {"up": "int9"}}, UnknownName, "unknown codec 'int9'; did you mean 'int8'?"),
        ({"train": {"elemens": 3}}, PlanRefused, "elemens: unknown key; did you mean 'elements'?"),
    ]
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", answer)
        run = await parties.start({"cohort": {"min": 1}}, "unmoved")
        await parties.until(lambda: parties.round(run, 1).opened, "round 1 opens")
        for wrong, kind, said in refusals:
            with pytest.raises(kind, match=re.escape(said)):
                await parties.api.start({"task": "noop", **wrong}, "refused")
        with pytest.raises(UnknownRun):
            await parties.api.run("refused")
        may_end.set()
        assert (await parties.finished(run)).rounds[0].accepted == 1


async def test_updates_of_runs_that_are_over_make_room_for_new_ones(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(ONES))
        await parties.finished(await parties.start({"cohort": {"min": 1}}, "spent"))
        assert await list_subjects(parties.operator, subjects.UPDATES, "fb.update.spent.>")
        planner = parties.planner
        await planner.stop()

        class Crowded(Tapped):
            """A broker without room until the updates of the first run are gone."""

            async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
                message = await ask()
                if subject == f"$JS.API.STREAM.INFO.{subjects.UPDATES}" and b"subjects_filter" not in data:
                    left = await list_subjects(parties.operator, subjects.UPDATES, "fb.update.spent.>")
                    if left:
                        full = message.data.replace(b'"max_bytes":', b'"max_bytes":1,"was":')
                        return Message(message.subject, full, message.headers)
                return message

        await planner.start(Crowded)
        await parties.finished(await parties.start({"cohort": {"min": 1}}, "next"))
        assert not await list_subjects(parties.operator, subjects.UPDATES, "fb.update.spent.>")


async def test_an_evaluator_that_starts_while_the_registry_is_full_registers_older_models_later(
    stack: Stack, tmp_path: Path
) -> None:
    refused = []

    class Full(Tapped):
        """A broker that has room for a model's record at the third try only."""

        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            if subject.startswith("$KV.FB_REGISTRY.") and len(refused) < 2:
                refused.append(subject)
                return Message(subject, json.dumps(error(STREAM_FULL, "maximum bytes exceeded")).encode(), {})
            return await ask()

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("a", honest(ONES))
        run = await parties.start({"rounds": 4, "cohort": {"min": 1}}, "unregistered")
        await parties.until(lambda: parties.round(run, 4).finished, "it ends")
        await parties.add("evaluator", lambda bus: Evaluator(bus, tmp_path).run(), Full)

        async def all_registered() -> bool:
            return (await Registry(parties.operator).rounds()).get(run) == [0, 1, 2, 3, 4]

        await parties.until_true(all_registered, "every model of the run is registered")
        assert len(refused) == 2


async def test_two_watches_on_one_connection_do_not_disturb_each_other(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        api = Federation(parties.operator)
        await parties.start({"cohort": {"min": 1}}, "watched")
        first = api.watch("watched")
        await anext(first)
        second = api.watch("watched")
        await anext(second)
        await second.aclose()
        await parties.script("a", honest(ONES))
        async for report in first:
            last = report
        assert last.state == "finished"

"""Spans leave their process by themselves, and a round's root is there whoever died, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from fedbus.base.clock import SystemClock
from fedbus.base.errors import ConfigError
from fedbus.bus import Bus, Credentials, Message
from fedbus.bus.provision import provision
from fedbus.cli.explaining import explained
from fedbus.cli.waterfall import waterfall
from fedbus.telemetry.model import Span, SpanRef
from fedbus.telemetry.spans import step
from fedbus.telemetry.stored import read_spans
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement
from rich.console import Console
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import broker
from support.tasks import TASK, walk, write_walk


class Dying(Tapped):
    """A connection of a planner that goes no further once round 1 is finished: no span of it gets out."""

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        answer = await ask()
        if subject.endswith(".1.log.planner") and b'"kind":"finished"' in data:
            await asyncio.Event().wait()
        return answer


async def stored(parties: Parties, run: str, number: int, *names: str) -> list[Span]:
    """The spans that the broker has of a round, once these are among them."""
    opened = parties.round(run, number).opened
    assert opened is not None
    async with asyncio.timeout(20):
        while True:
            found = await read_spans(parties.operator, opened.trace_id, opened.at)
            if set(names) <= {span.name for span in found}:
                return found
            await asyncio.sleep(0.02)


async def test_the_next_planner_emits_the_root_that_its_predecessor_did_not(
    credentials: Callable[[str], Credentials], tmp_path: Path
) -> None:
    async with federation(credentials, tmp_path, workers=["w1"]) as parties:
        await parties.planner.stop()
        await parties.planner.start(Dying)
        run = await parties.start({"cohort": {"min": 1}}, "rootless")
        await parties.until(lambda: parties.round(run, 1).finished, "round 1 is finished")
        await parties.planner.crash()
        opened = parties.round(run, 1).opened
        assert opened is not None
        before = await read_spans(parties.operator, opened.trace_id, opened.at)
        assert "round" not in {span.name for span in before}
        await parties.planner.start()
        found = await stored(parties, run, 1, "round")
        (root,) = [span for span in found if span.parent_id is None]
        assert (root.span_id, root.start) == (opened.span_id, pytest.approx(opened.at))
        made = {span.name for span in found if span.service == "planner"}
        assert {"round", "collect", "aggregate", "finish"} <= made
        # Once is enough: with the run over, another planner has nothing to say.
        await parties.finished(run)
        await parties.planner.stop()
        await parties.planner.start()
        await parties.hears(parties.operator)
        found = await read_spans(parties.operator, opened.trace_id, opened.at)
        assert sum(span.parent_id is None for span in found) == 1


async def test_a_failing_task_says_why_in_its_span(
    credentials: Callable[[str], Credentials], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_walk(tmp_path)
    monkeypatch.chdir(tmp_path)
    async with federation(credentials, tmp_path, workers=[]) as parties:
        labels = {"name": "f1", "examples": "1", "broken": "1"}
        await parties.join("f1", tasks=(TASK,), labels=labels)
        run = await parties.start(walk(cohort={"min": 1}), "failing-span")
        assert (await parties.ended(run)).state == "aborted"
        found = await stored(parties, run, 1, "round", "task")
        failed = {span.name: span.error for span in found if span.error}
        assert set(failed) == {"round", "task", "train"}
        assert str(failed["train"]).endswith("OSError: the disk of this host is gone")
        trace = await parties.api.trace(run, 1)
        drawn = Console(width=100, record=True, file=StringIO())
        drawn.print(waterfall(trace, drawn.width))
        lines = drawn.export_text().splitlines()
        assert lines[0].startswith("failing-span/1: ")
        assert any(
            line.startswith("train of f1: ") and "the disk of this host is gone" in line for line in lines
        )


async def test_a_worker_that_was_slowed_on_purpose_is_named_with_what_it_did(
    credentials: Callable[[str], Credentials], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_walk(tmp_path)
    monkeypatch.chdir(tmp_path)
    async with federation(credentials, tmp_path, workers=[]) as parties:
        for name, slow in (("e1", "0"), ("e2", "1.5"), ("e3", "0")):
            labels = {"name": name, "examples": "1", "slow": slow}
            await parties.join(name, tasks=(TASK,), labels=labels)
        run = await parties.start(walk(rounds=2, close={"quorum": 2}), "explained")
        await parties.finished(run)
        await stored(parties, run, 2, "round", "publish-model", "upload")
        found = await parties.api.explain(run, 2)
        assert (found.last, found.last_did) == ("e2", "train")
        assert sum(step.seconds for step in found.path) == pytest.approx(found.seconds, abs=1e-3)
        trained = next(step for step in found.path if step.name == "train")
        assert trained.party == "e2"
        assert trained.seconds >= 1.5
        assert {"straggler", "slow-train"} <= {hint.code for hint in found.hints}
        drawn = Console(width=80, record=True, file=StringIO())
        drawn.print(explained(found))
        text = drawn.export_text()
        assert text.startswith("explained/2 finished: ")
        assert "; e2 was last, most of its time in train" in text
        assert "close.target: 2 [straggler]" in " ".join(text.split())


async def test_a_task_that_counted_did_not_fail_though_its_round_was_closed_first(
    credentials: Callable[[str], Credentials], tmp_path: Path
) -> None:
    """The aggregator hears of a manifest, and the planner closes the round, before the worker has its ack."""
    closed = asyncio.Event()

    class Late(Tapped):
        """A worker's connection on which the ack of its manifest comes behind the end of the round."""

        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            answer = await ask()
            if subject.startswith("fb.update.overtaken.1.") and subject.endswith(".manifest"):
                await closed.wait()
                for _ in range(20):
                    await self.flush()  # what it was told before is heard by now
            return answer

    def hear(message: Message) -> None:
        news = Announcement.model_validate_json(message.data)
        if (news.run, news.round, news.state) == ("overtaken", 1, "closed"):
            closed.set()

    async with federation(credentials, tmp_path, workers=[]) as parties:
        await parties.operator.subscribe(subjects.ALL_ANNOUNCEMENTS, hear)
        await parties.join("late", connection=Late)
        run = await parties.start({"cohort": {"min": 1}}, "overtaken")
        report = await parties.finished(run)
        assert report.rounds[0].accepted == 1
        found = await stored(parties, run, 1, "round", "task", "upload")
        assert {span.name: span.error for span in found if span.error} == {}


async def test_a_task_that_did_not_count_was_stopped_with_its_round(
    credentials: Callable[[str], Credentials], tmp_path: Path
) -> None:
    async with federation(credentials, tmp_path, workers=[]) as parties:
        training = asyncio.Event()
        await parties.api.hear_progress(lambda p: training.set() if p.phase == "train" and p.round else None)
        await parties.join("slow")
        run = await parties.start({"cohort": {"min": 1}, "train": {"seconds": 60.0}}, "stopped")
        await training.wait()
        await parties.api.abort(run)
        await parties.ended(run)
        found = await stored(parties, run, 1, "round", "task", "train")
        (task,) = [span for span in found if span.name == "task"]
        assert (task.error, task.attributes["code"]) == (None, "stopped")


async def test_spans_wait_for_a_broker_that_is_away(tmp_path: Path) -> None:
    async with broker(tmp_path) as own:
        planner = await Bus.connect(own.credentials("planner"))
        worker = await Bus.connect(own.credentials("w1"))
        tracer = Tracer(worker, "worker")
        try:
            await provision(planner)
            tracer.start()
            since = SystemClock().now()
            await asyncio.to_thread(own.kill)
            with tracer.span("task", SpanRef("a" * 32, "b" * 16)), step("train"):
                pass
            tracer.flush_soon()
            await asyncio.to_thread(own.restart)
            await worker.wait_up()
            await tracer.close()
            await planner.wait_up()
            found = await read_spans(planner, "a" * 32, since)
            assert [span.name for span in found] == ["train", "task"]
        finally:
            await tracer.close()
            await worker.close()
            await planner.close()


async def test_telemetry_can_be_switched_off(
    credentials: Callable[[str], Credentials], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_TELEMETRY", "off")
    async with federation(credentials, tmp_path, workers=["w1"]) as parties:
        run = await parties.start({"cohort": {"min": 1}}, "untraced")
        await parties.finished(run)
        opened = parties.round(run, 1).opened
        assert opened is not None
        for party in [*parties.workers.values(), parties.planner, parties.aggregator]:
            await party.stop()  # its last spans would have left by now
        assert await read_spans(parties.operator, opened.trace_id, opened.at) == []
        # What the log says is there all the same.
        trace = await parties.api.trace(run, 1)
        assert [span.name for span in trace.tree.spans] == ["round", "collect", "aggregate", "finish"]


async def test_a_wrong_switch_is_an_error(
    credentials: Callable[[str], Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_TELEMETRY", "maybe")
    bus = await Bus.connect(credentials("planner"))
    try:
        with pytest.raises(ConfigError, match="use on or off"):
            Tracer(bus, "planner")
    finally:
        await bus.close()

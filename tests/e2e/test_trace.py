"""One trace for each round, across real processes, as an OTLP receiver and `fedbus round trace` have it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fedbus.api.federation import Federation
from fedbus.bus import Bus
from fedbus.bus.store import list_subjects
from fedbus.runtime.stack import LocalStack
from fedbus_schemas import subjects
from fedbus_schemas.report import RunReport
from support.commands import shell
from support.natsd import wait_until
from support.otlp import Received, Receiver, receiver
from support.processes import alive, processes

WORKERS = ("w1", "w2", "w3")
SERVICES = ("enroll", "planner", "aggregator", "evaluator")
# DESIGN's keys of a span, and why it failed: scripts rely on them.
SPAN = {
    "name",
    "service",
    "worker",
    "span_id",
    "parent_id",
    "start",
    "end",
    "attributes",
    "events",
    "error",
}
STEPS = ("download", "train", "encode", "upload")
PHASES = ("collect", "aggregate", "finish")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalStack, Receiver]]:
    """Broker, four services and three workers that were told of a receiver; each test names its own run."""
    folder = tmp_path_factory.mktemp("trace")
    with receiver() as to, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", to.url)
        stack = LocalStack(folder)
        stack.open()
        try:
            stack.start_services(SERVICES)
            for name in WORKERS:
                stack.start_worker(name)
            yield stack, to
        finally:
            stack.stop()
            shutil.rmtree(folder)


async def run(stack: LocalStack, name: str, *, kill: str | None = None, **plan: Any) -> RunReport:
    """Run noop rounds to their end; `kill` is killed and started again in the middle of the first."""
    bus = await Bus.connect(stack.broker.accounts.credentials("operator"))
    try:
        stack.check()  # nobody starts again here what dies
        federation = Federation(bus)
        base = {"task": "noop", "codec": {"up": "dense"}, "cohort": {"min": len(WORKERS)}}
        await federation.start({**base, "close": {"deadline_s": 50.0}, **plan}, name)
        if kill:
            await in_mid_upload(bus, name)
            await asyncio.to_thread(kill_and_restart, stack, kill)
        async with asyncio.timeout(50):
            async for report in federation.watch(name):
                last = report
    finally:
        await bus.close()
    assert last.state == "finished", last.reason
    return last


async def in_mid_upload(bus: Bus, run: str) -> None:
    """Return when some of round 1 is stored, and not all."""
    async with asyncio.timeout(40):
        while True:
            found = await list_subjects(bus, subjects.UPDATES, subjects.update(run, 1, "*", "*", "*", "*"))
            if len(found) > 5:
                break
            await asyncio.sleep(0.01)
    manifests = [subject for subject in found if subject.endswith(".manifest")]
    assert len(manifests) < len(WORKERS), f"too quick for this test: {len(found)} messages"


def kill_and_restart(stack: LocalStack, name: str) -> None:
    (pid,) = [each.pid for each in processes() if each.parent == stack.pid(name)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), f"{name} is gone")
    stack.restart(name)


def arrived(to: Receiver, trace_id: str, *names: str) -> list[Received]:
    """The spans of a trace, once those named have arrived and every parent is there."""

    def whole() -> bool:
        spans = to.of(trace_id)
        ids = {s.span_id for s in spans}
        tasks = {s.instance for s in spans if s.name == "task" and s.error is None}
        parents = all(s.parent_id in ids for s in spans if s.parent_id)
        return {*names, "round"} <= {s.name for s in spans} and parents and tasks == set(WORKERS)

    try:
        wait_until(whole, "the trace is whole")
    except AssertionError as error:
        raise AssertionError(f"{error}: {[(s.name, s.instance, s.error) for s in to.of(trace_id)]}") from None
    return to.of(trace_id)


def check(spans: list[Received]) -> Received:
    """One root, every parent present, each worker's steps under its task, the phases' sum the round."""
    ids = {s.span_id for s in spans}
    assert len(ids) == len(spans), "a span was sent twice"
    (root,) = [s for s in spans if not s.parent_id]
    assert (root.name, root.service) == ("round", "fedbus-planner")
    assert all(s.parent_id in ids for s in spans if s is not root)
    assert {s.parent_id for s in spans if s.service != "fedbus-worker" and s is not root} == {root.span_id}
    for worker in WORKERS:
        own = [s for s in spans if s.instance == worker]
        (task,) = [s for s in own if s.name == "task"]
        steps = [s for s in own if s.parent_id == task.span_id]
        assert [s.name for s in sorted(steps, key=lambda s: s.start)] == list(STEPS)
        assert task.parent_id == root.span_id
        assert all(task.start <= s.start <= s.end <= task.end for s in steps)
        assert task.attributes["worker"] == worker
        assert task.attributes["bytes"] > 0
        assert {s.service for s in own} == {"fedbus-worker"}
        assert len({s.pid for s in own}) == 1
    # The phases follow one another, and together are the round.
    phases = [s for s in spans if s.name in PHASES]
    assert sorted(s.name for s in phases) == sorted(PHASES)
    assert sum(s.end - s.start for s in phases) == pytest.approx(root.end - root.start, rel=0.1)
    return root


def measured(spans: list[Received], root: Received) -> float:
    """Which share of the round was spent in what workers and aggregator measured themselves.

    The planner's phases follow from the log, so they would cover a round also if nobody had worked.
    """
    children = [s for s in spans if s.parent_id == root.span_id and s.service != root.service]
    covered, reached = 0, root.start
    for child in sorted(children, key=lambda s: s.start):
        start, end = max(child.start, reached), min(child.end, root.end)
        covered, reached = covered + max(0, end - start), max(reached, end)
    return covered / (root.end - root.start)


async def test_a_round_is_one_trace_of_all_processes(exported: tuple[LocalStack, Receiver]) -> None:
    stack, to = exported
    report = await run(stack, "traced", rounds=2, train={"seconds": 1.5})
    for each in report.rounds:
        expected = ("select", "announce", *PHASES, "verify", "fold")
        spans = await asyncio.to_thread(
            arrived, to, each.trace_id, *expected, "publish-model", "evaluate", *STEPS
        )
        root = check(spans)
        assert measured(spans, root) >= 0.9
        counts = {"cohort": 3, "accepted": 3, "lost": 0, "rejected": 0}
        why = {"code": "target", "reason": root.attributes["reason"]}
        assert root.attributes == {"run": "traced", "round": each.round, **counts, **why}
        assert root.attributes["reason"]
        assert len({s.pid for s in spans}) >= 6
        assert {s.service.removeprefix("fedbus-") for s in spans} == {"worker", *SERVICES[1:]}
        assert sorted(s.attributes["worker"] for s in spans if s.name == "verify") == list(WORKERS)
        assert [s.error for s in spans if s.error] == []
    assert len({each.trace_id for each in report.rounds}) == 2


async def test_a_killed_planner_orphans_nothing(exported: tuple[LocalStack, Receiver]) -> None:
    stack, to = exported
    report = await run(stack, "orphaned", kill="planner", train={"elements": 5_000_000}, rounds=1)
    spans = await asyncio.to_thread(arrived, to, report.rounds[0].trace_id, "publish-model", "evaluate")
    root = check(spans)
    assert (root.end - root.start) / 1e9 == pytest.approx(report.rounds[0].seconds or 0, abs=1.0)


async def test_a_killed_aggregator_and_worker_break_nothing(exported: tuple[LocalStack, Receiver]) -> None:
    stack, to = exported
    for victim in ("aggregator", "w1"):
        name = f"broken-{victim}"
        report = await run(stack, name, kill=victim, train={"elements": 5_000_000}, rounds=1)
        spans = await asyncio.to_thread(arrived, to, report.rounds[0].trace_id, "publish-model")
        (root,) = [s for s in spans if not s.parent_id]
        assert root.attributes["accepted"] == 3
        assert {s.parent_id for s in spans if s.name == "task"} == {root.span_id}


def test_the_command_draws_and_prints_what_the_broker_keeps(
    exported: tuple[LocalStack, Receiver], tmp_path: Path
) -> None:
    stack, to = exported
    report = asyncio.run(run(stack, "drawn", rounds=1))
    trace_id = report.rounds[0].trace_id
    arrived(to, trace_id, "publish-model", "evaluate")
    where = ("--dir", str(stack.folder))
    with shell(tmp_path) as typed:
        done = typed.run("fedbus", "round", "trace", "drawn/1", "--json", *where)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        drawn = typed.run("fedbus", "round", "trace", "drawn/1", *where, env={"COLUMNS": "110"})
        wrong = typed.run("fedbus", "round", "trace", "drawn", *where)
        missing = typed.run("fedbus", "round", "trace", "drawn/9", "--json", *where)
    assert found["trace_id"] == trace_id
    assert all(set(span) == SPAN for span in found["spans"])
    ids = {span["span_id"] for span in found["spans"]}
    assert found["spans"][0]["name"] == "round"
    assert [s["name"] for s in found["spans"] if s["parent_id"] not in ids] == ["round"]
    assert {s["span_id"] for s in found["spans"]} == {s.span_id for s in to.of(trace_id)}
    assert {s["worker"] for s in found["spans"] if s["service"] == "worker"} == set(WORKERS)
    lines = drawn.out.splitlines()
    assert drawn.code == 0, drawn.err
    assert lines[0].startswith("drawn/1: ")
    assert trace_id in lines[0]
    assert [line for line in lines if "download" in line and "w2" in line]
    assert sum(line.startswith("  task") for line in lines) == 3
    assert wrong.code == 10
    assert "a trace is of one round" in wrong.err
    assert json.loads(missing.out)["error"]["code"] == "unknown-run"

"""A whole federation on a test's event loop: services and workers as tasks, each with its own connection.

Every party can be stopped as a signal stops it, or crashed: its connection is cut first, so nothing that
it does on its way out reaches anybody. A party that ends with an error fails the test with its traceback,
and so does an error that fedbus logged with one, such as a failing subscriber's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fedbus.api.federation import Federation
from fedbus.bus import Bus, Credentials
from fedbus.bus.log import RoundLog
from fedbus.bus.models import load_values, read_manifest
from fedbus.bus.provision import provision
from fedbus.bus.store import persist
from fedbus.codec import Vector
from fedbus.rounds.fold import Round
from fedbus.runtime.child import Trainer
from fedbus_aggregator.service import Aggregator
from fedbus_evaluator.service import Evaluator
from fedbus_planner.service import Planner
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.report import RunReport
from fedbus_worker.agent import Agent
from support.scripted import Answer, Scripted

Plan = dict[str, Any]
Work = Callable[[Bus], Coroutine[Any, Any, None]]
WAIT_S = 30.0


class Party:
    """A service or a worker: a task on a connection of its own, that can be started again and again."""

    def __init__(self, group: asyncio.TaskGroup, credentials: Credentials, work: Work) -> None:
        self._group = group
        self._credentials = credentials
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.bus: Bus | None = None

    async def start(self, connection: type[Bus] = Bus) -> None:
        """Connect, with a subclass of Bus where a test counts or holds what is sent, and begin."""
        assert self._task is None, "it runs"
        self.bus = await connection.connect(self._credentials)
        self._task = self._group.create_task(self._work(self.bus), name=self._credentials.name)

    async def stop(self) -> None:
        """End as on SIGTERM."""
        await self._end()
        if self.bus:
            await self.bus.close()

    async def crash(self) -> None:
        """End as on SIGKILL."""
        if self.bus:
            await self.bus.close()
        await self._end()

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.wait([task])


class Parties:
    """A running federation, as a test holds it."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        credentials: Callable[[str], Credentials],
        folder: Path,
        operator: Bus,
    ) -> None:
        self._group = group
        self._credentials = credentials
        self._folder = folder
        self._parties: list[Party] = []
        self._changed = asyncio.Event()
        self.operator = operator
        self.api = Federation(operator)
        self.log = RoundLog(operator, lambda _: self._changed.set())
        self.workers: dict[str, Party] = {}
        self.scripted: dict[str, Scripted] = {}
        self.planners: list[Party] = []
        self.aggregators: list[Party] = []

    @property
    def planner(self) -> Party:
        return self.planners[0]

    @property
    def aggregator(self) -> Party:
        return self.aggregators[0]

    async def add(self, identity: str, work: Work, connection: type[Bus] = Bus) -> Party:
        """Start a party."""
        credentials = await asyncio.to_thread(self._credentials, identity)
        party = Party(self._group, credentials, work)
        self._parties.append(party)
        await party.start(connection)
        return party

    async def join(
        self,
        name: str,
        *,
        labels: dict[str, str] | None = None,
        tasks: tuple[str, ...] = (),
        connection: type[Bus] = Bus,
    ) -> Party:
        """Start a real worker: an agent and its trainer child. Its state folder stays with its name."""
        state = self.state_of(name)

        async def work(bus: Bus) -> None:
            async with Trainer(state / "path") as trainer:
                await Agent(bus, trainer, state, labels=labels, tasks=tasks).run()

        self.workers[name] = await self.add(name, work, connection)
        return self.workers[name]

    async def script(
        self, name: str, answer: Answer | None = None, tasks: tuple[str, ...] = ("noop",), **labels: str
    ) -> Scripted:
        """Start a worker that does what the test says; see `support.scripted`."""

        async def work(bus: Bus) -> None:
            self.scripted[name] = Scripted(bus, answer, labels, tasks)
            joined.set()
            await self.scripted[name].run()

        joined = asyncio.Event()
        self.workers[name] = await self.add(name, work)
        await joined.wait()
        await self.scripted[name].beat()
        await self.hears(self.scripted[name].bus)
        return self.scripted[name]

    async def hears(self, bus: Bus) -> None:
        """Return when the planner has what was sent on a connection: its answer comes behind it."""
        await bus.flush()
        await self.api.waiting("anything")

    def state_of(self, name: str) -> Path:
        return self._folder / name

    async def until(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
        """Return once the condition holds: looked at again at each log entry, and at least 50 times a second.

        Fails with `what` and what the log has when it does not hold in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await self._changed.wait()
        except TimeoutError:
            open_ = {str(ref): round_.state for ref, round_ in self.log.rounds.items() if not round_.ended}
            raise AssertionError(f"not within {timeout_s:g} s: {what}; open rounds: {open_}") from None

    async def until_true(self, ask: Callable[[], Awaitable[bool]], what: str) -> None:
        """Return once the broker answers a question with yes; asked at each log entry, and often."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not await ask():
                    self._changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {WAIT_S:g} s: {what}") from None

    async def start(self, plan: Plan, name: str) -> str:
        """Start a noop run; `plan` goes over short deadlines and one round."""
        base: Plan = {"task": "noop", "rounds": 1, "codec": {"up": "dense"}, "close": {}}
        values = {**base, "evaluate": {"central": False}, **plan}
        values["close"] = {"deadline_s": 30.0, **values["close"]}
        return await self.api.start(values, name)

    async def waits(self, run: str, what: str) -> str:
        """Return why a run waits, as soon as the reason contains a text."""
        async with asyncio.timeout(WAIT_S):
            while True:
                said = await self.api.waiting(run)
                if said.reason and what in said.reason:
                    return said.reason
                await asyncio.sleep(0.02)

    async def finished(self, run: str) -> RunReport:
        """The report of a run that finishes.

        Fails when the run aborts, or does not end in time.
        """
        report = await self.ended(run)
        assert report.state == "finished", f"{run} {report.state}: {report.reason}"
        return report

    async def ended(self, run: str) -> RunReport:
        """The report of a run, once nothing more happens to it."""
        try:
            async with asyncio.timeout(WAIT_S):
                async for report in self.api.watch(run):
                    last = report
        except TimeoutError:
            rounds = [r.model_dump_json() for r in last.rounds if r.state not in ("finished", "aborted")]
            raise AssertionError(f"{run} is {last.state} ({last.reason}); {rounds}") from None
        return last

    def round(self, run: str, number: int) -> Round:
        """The fold of a round; an empty one before it is opened."""
        return self.log.rounds.get(RoundRef(run, number)) or Round()

    async def model(self, digest: str | None) -> Vector:
        """Download a model as one flat vector."""
        assert digest is not None, "there is no model"
        return await load_values(self.operator, await read_manifest(self.operator, digest))

    async def stop(self) -> None:
        for party in [*self.workers.values(), *self._parties]:
            await party.stop()
        await self.log.close()


class _Errors(logging.Handler):
    """Keeps what fedbus logs with a traceback, and what asyncio tells of a task that nobody awaited."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(logging.Formatter().format(record))


@asynccontextmanager
async def federation(
    credentials: Callable[[str], Credentials],
    folder: Path,
    *,
    workers: Sequence[str] = ("w1", "w2", "w3"),
    planners: int = 1,
    aggregators: int = 1,
    evaluator: bool = False,
) -> AsyncIterator[Parties]:
    """Run services, and agents with real trainer children, on a broker.

    Args:
        credentials: gives each party's, such as the session's `stack.credentials`.
        folder: for the workers' state.
        workers: names of agents to start.
        planners: how many instances of the planner.
        aggregators: how many instances of the aggregator.
        evaluator: whether one runs.
    """
    errors = _Errors()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(errors)
    operator = await Bus.connect(credentials("operator"))
    try:
        async with asyncio.TaskGroup() as group:
            parties = Parties(group, credentials, folder, operator)
            planner = await Bus.connect(credentials("planner"))
            await provision(planner)
            await planner.close()
            await parties.log.start(1)
            try:
                for _ in range(planners):
                    parties.planners.append(await parties.add("planner", lambda bus: Planner(bus).run()))
                # A planner learns of workers from their beats: those that come before it listens are lost.
                await persist(operator, lambda: operator.request("$SRV.PING.planner"))
                for _ in range(aggregators):
                    made = await parties.add("aggregator", lambda bus: Aggregator(bus, folder).run())
                    parties.aggregators.append(made)
                if evaluator:
                    await parties.add("evaluator", lambda bus: Evaluator(bus, folder).run())
                    # Who watches a run waits for scores only while somebody answers.
                    await persist(operator, lambda: operator.request("$SRV.PING.evaluator"))
                for name in workers:
                    await parties.join(name)
                yield parties
            finally:
                await parties.stop()
    except BaseExceptionGroup as failed:
        # One failure, of the test or of a party, is shown as itself.
        raise (failed.exceptions[0] if len(failed.exceptions) == 1 else failed) from None
    finally:
        await operator.close()
        for logger in loggers:
            logger.removeHandler(errors)
    assert not errors.seen, "\n\n".join(errors.seen)


_LOGGERS = (
    "asyncio",
    "fedbus",
    "fedbus_enroll",
    "fedbus_planner",
    "fedbus_aggregator",
    "fedbus_evaluator",
    "fedbus_worker",
)

"""A running federation as its operator sees it: start runs, read rounds, follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Self

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import AskWaiting, RunRecord, Started, StartRun, Waiting
from fedbus_schemas.report import RoundReport, RunReport, RunSummary

from fedbus.base.clock import random_token
from fedbus.base.errors import BusError, BusUnavailable, NotAcked, UnknownRun
from fedbus.bus import Bus, Credentials
from fedbus.bus.log import RoundLog, read_round
from fedbus.bus.micro import ask
from fedbus.bus.runs import Runs
from fedbus.bus.store import persist
from fedbus.rounds.evaluating import wanting
from fedbus.rounds.fold import Round
from fedbus.rounds.report import round_report, run_report, run_summary

# How long a finished run is watched for scores that are due.
SCORE_WAIT_S = 60.0
TICK_S = 2.0
PLANNER_WAIT_S = 10.0


class Federation:
    """An operator's connection. Use it as an async context."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._runs = Runs(bus)

    @classmethod
    async def connect(cls, credentials: Credentials) -> Self:
        """Connect as the operator.

        Raises:
            AuthRefused, BusUnavailable: the broker does not let us in, or is not there.
        """
        return cls(await Bus.connect(credentials))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.close()

    async def start(self, plan: dict[str, Any], name: str | None = None) -> str:
        """Start a run; return its name.

        Raises:
            PlanRefused, UnknownName: the planner refuses the plan, and says why.
            BusUnavailable: no planner answers.
        """
        command = StartRun(plan=plan, name=name, token=random_token())
        loop = asyncio.get_running_loop()
        patience = loop.time() + PLANNER_WAIT_S
        while True:
            try:
                return (await ask(self._bus, "planner", "start", command, Started)).run
            except (BusUnavailable, NotAcked):
                # The planner may be starting again. If it heard us, it knows the command by its token.
                if loop.time() > patience:
                    raise
            await asyncio.sleep(0.1)

    async def runs(self) -> list[RunSummary]:
        """All runs, oldest first."""
        records = [(await self._runs.get(name))[0] for name in await self._runs.names()]
        records.sort(key=lambda record: record.created_at)
        return [run_summary(record, await self._last_rounds(record)) for record in records]

    async def run(self, name: str) -> RunReport:
        """A run and all its rounds.

        Raises:
            UnknownRun: there is none of that name.
        """
        record, _ = await self._runs.get(name)
        rounds = await self._rounds_of(record)
        report = run_report(record, rounds)
        return (
            report
            if report.state in ("finished", "aborted")
            else run_report(record, rounds, await self.waiting(name))
        )

    async def round(self, run: str, number: int) -> RoundReport:
        """One round.

        Raises:
            UnknownRun: no such run, or it has no such round yet.
        """
        record, _ = await self._runs.get(run)
        round_ = await read_round(self._bus, RoundRef(run, number))
        if round_.opened is None:
            raise UnknownRun(
                f"{run} has no round {number}",
                hint=f"it is at round {record.open_round} of {record.plan.rounds}",
            )
        return round_report(number, round_)

    async def waiting(self, run: str) -> str | None:
        """What a run waits for, as the planner says; None when it does not wait."""
        try:
            return (await ask(self._bus, "planner", "waiting", AskWaiting(run=run), Waiting)).reason
        except BusError as error:
            return error.message

    async def watch(self, name: str) -> AsyncGenerator[RunReport]:
        """Follow a run: its report at every change, until it has ended and every score that is due is in.

        A score that no evaluator delivers is waited for a minute at most, and not at all
        when no evaluator runs.
        """
        record, _ = await persist(self._bus, lambda: self._runs.get(name))
        changed = asyncio.Event()
        changed.set()
        log = RoundLog(self._bus, lambda ref: changed.set() if ref.run == name else None)
        # Rounds that ended before; what is still said about them comes by the log.
        for number, round_ in (await persist(self._bus, lambda: self._rounds_of(record))).items():
            log.rounds[RoundRef(name, number)] = round_
        await log.start(record.open_seq)
        ended_at: float | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                report = run_report(record, log.of(name))
                if report.state == "waiting":
                    report = run_report(record, log.of(name), await self.waiting(name))
                yield report
                if report.state in ("finished", "aborted"):
                    ended_at = ended_at or loop.time()
                    if not await self._scores_to_come(record, log.of(name), loop.time() - ended_at):
                        return
                changed.clear()
                try:
                    async with asyncio.timeout(TICK_S):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            await log.close()

    async def _scores_to_come(self, record: RunRecord, rounds: dict[int, Round], waited_s: float) -> bool:
        if waited_s > SCORE_WAIT_S or not any(wanting(record.plan, n, r) for n, r in rounds.items()):
            return False
        try:
            await self._bus.request("$SRV.PING.evaluator", timeout_s=1.0)
        except BusError:
            return False
        return True

    async def _rounds_of(self, record: RunRecord) -> dict[int, Round]:
        rounds: dict[int, Round] = {}
        number = 0 if record.plan.model.from_run is None else 1
        while (round_ := await read_round(self._bus, RoundRef(record.name, number))).opened is not None:
            rounds[number] = round_
            number += 1
        return rounds

    async def _last_rounds(self, record: RunRecord) -> dict[int, Round]:
        rounds = {}
        for number in range(max(0, record.open_round - 1), record.open_round + 2):
            round_ = await read_round(self._bus, RoundRef(record.name, number))
            if round_.opened is not None:
                rounds[number] = round_
        return rounds

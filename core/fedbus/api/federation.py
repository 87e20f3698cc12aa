"""A running federation as its operator sees it: start runs, read rounds, follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

import numpy as np
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import (
    Aborting,
    AbortRun,
    AskReplay,
    AskWaiting,
    Progress,
    Replayed,
    RunRecord,
    Started,
    StartRun,
    Waiting,
)
from fedbus_schemas.report import ExplainReport, RoundReport, RunReport, RunSummary

from fedbus.api.explanations import read_explanation
from fedbus.api.members import Members
from fedbus.api.models import Models
from fedbus.api.traces import Trace, read_trace
from fedbus.base.clock import random_token
from fedbus.base.errors import BusError, BusUnavailable, UnknownRun
from fedbus.bus import Bus, Credentials
from fedbus.bus.hearing import hear_progress
from fedbus.bus.log import RoundLog, read_round
from fedbus.bus.micro import ask
from fedbus.bus.models import load_values, read_manifest
from fedbus.bus.runs import Runs
from fedbus.bus.store import persist
from fedbus.codec.grid import order
from fedbus.rounds.evaluating import due, wanting
from fedbus.rounds.fold import Round
from fedbus.rounds.report import NOT_SCORED, round_report, run_report, run_summary
from fedbus.rounds.waits import Waits
from fedbus.tasks.vector import Tensors

REPLAY_S = 600.0  # one round, and those that it builds on
# How long a finished run is watched for scores that are due.
SCORE_WAIT_S = 60.0
TICK_S = 2.0
PLANNER_WAIT_S = 10.0

log = logging.getLogger(__name__)


class Federation:
    """An operator's connection. Use it as an async context."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._runs = Runs(bus)
        self.members = Members(bus)

    @classmethod
    async def connect(cls, credentials: Credentials) -> Self:
        """Connect as the operator.

        Raises:
            AuthRefused, BusUnavailable: the broker does not let us in, or is not there.
        """
        return cls(await Bus.connect(credentials))

    @property
    def models(self) -> Models:
        """The registry of models."""
        return Models(self._bus)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect. Runs go on without us."""
        await self._bus.close()

    async def start(self, plan: dict[str, Any], name: str | None = None) -> str:
        """Start a run; return its name.

        Raises:
            PlanRefused, UnknownName: the planner refuses the plan, and says why.
            BusUnavailable: no planner answers.
        """
        # The planner knows a command that it has heard before by its token.
        command = StartRun(plan=plan, name=name, token=random_token())
        started = await ask(
            self._bus, "planner", "start", command, Started, patience_s=PLANNER_WAIT_S, repeatable=True
        )
        return started.run

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

    async def trace(self, run: str, number: int) -> Trace:
        """The spans of one round, of all parties, as far as they have come.

        Raises:
            UnknownRun: no such run, or it has no such round yet.
        """
        return await read_trace(self._bus, RoundRef(run, number))

    async def explain(self, run: str, number: int) -> ExplainReport:
        """Where the time of one round went, who was last, and what would have made it faster.

        Raises:
            UnknownRun: no such run, or it has no such round yet.
        """
        return await read_explanation(self._bus, RoundRef(run, number), self.waiting)

    async def replay(self, run: str, number: int) -> Replayed:
        """Have an aggregator make the model of a round again from what is stored, and compare the two.

        Raises:
            UnknownRun: no such run, or no such round.
            BusUnavailable: no aggregator answers.
        """
        asked = AskReplay(run=run, round=number)
        return await ask(self._bus, "aggregator", "replay", asked, Replayed, timeout_s=REPLAY_S)

    async def waiting(self, run: str) -> Waiting:
        """What a run waits for, as the planner says; where no planner answers, that."""
        try:
            return await ask(self._bus, "planner", "waiting", AskWaiting(run=run), Waiting)
        except BusError as error:
            return Waiting(code=error.code, reason=error.message)

    async def abort(self, run: str, reason: str | None = None) -> str:
        """End a run: its open round is aborted, and its workers stop. Returns the reason that is recorded.

        Raises:
            UnknownRun: there is none of that name.
            RunEnded: it is over already.
        """
        wish = AbortRun(run=run, reason=reason) if reason else AbortRun(run=run)
        return (await ask(self._bus, "planner", "abort", wish, Aborting)).reason

    async def model(self, run: str) -> dict[str, np.ndarray]:
        """The last model of a run, as named numpy arrays in the dtypes of the task's tensors.

        Raises:
            UnknownRun: there is none of that name, or it has made no model yet.
        """
        report = await self.run(run)
        if report.model is None:
            raise UnknownRun(f"{run} has made no model yet")
        manifest = await read_manifest(self._bus, report.model)
        values = await load_values(self._bus, manifest)
        return dict(Tensors(values, [tensor.model_dump() for tensor in order(manifest.table)]))

    async def hear_progress(self, heard: Callable[[Progress], None]) -> None:
        """Be told, from now on and as long as this connection lives, how far workers are. It may be lost."""
        await hear_progress(self._bus, heard)

    async def rounds(self, name: str) -> AsyncGenerator[RoundReport]:
        """Follow a run round by round: each one once, when it has ended and its score is in, if one is due.

        Ends with the run. What `watch` yields says more; this is what most programs want. Scores are not
        waited for where no evaluator runs, nor one that was passed over. What holds the run up for some
        seconds is logged, once, as a warning.
        """
        record, _ = await self._runs.get(name)
        scored = await self._evaluator_answers()
        told = 0
        last: RunReport | None = None
        waits = Waits()
        async for last in self.watch(name):
            if reason := waits.news(last, asyncio.get_running_loop().time()):
                log.warning("%s waits: %s", name, reason)
            for report in last.rounds[told:]:
                over = report.state in ("finished", "aborted")
                if not over or (scored and _lacks_score(record, last, report)):
                    break
                told += 1
                yield report
        for report in last.rounds[told:] if last else []:
            yield report

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
        quiet = False  # nothing happened for a while
        loop = asyncio.get_running_loop()
        try:
            while True:
                report = run_report(record, log.of(name))
                if report.state == "waiting" or (report.state == "running" and quiet):
                    # No log entry says what the run waits for, or that it was aborted between two rounds.
                    record, _ = await persist(self._bus, lambda: self._runs.get(name))
                    report = run_report(record, log.of(name), await self.waiting(name))
                yield report
                if report.state in ("finished", "aborted"):
                    ended_at = ended_at or loop.time()
                    if not await self._scores_to_come(record, log.of(name), loop.time() - ended_at):
                        return
                changed.clear()
                quiet = False
                try:
                    async with asyncio.timeout(TICK_S):
                        await changed.wait()
                except TimeoutError:
                    quiet = True
        finally:
            await log.close()

    async def _scores_to_come(self, record: RunRecord, rounds: dict[int, Round], waited_s: float) -> bool:
        if waited_s > SCORE_WAIT_S or not any(wanting(record.plan, n, r) for n, r in rounds.items()):
            return False
        return await self._evaluator_answers()

    async def wait_for(self, service: str, timeout_s: float = 30.0) -> None:
        """Return once a service with commands answers.

        Raises:
            BusUnavailable: it does not, in that time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await persist(self._bus, lambda: self._bus.request(f"$SRV.PING.{service}", timeout_s=1.0))
        except TimeoutError:
            raise BusUnavailable(f"the {service} did not answer within {timeout_s:g} s") from None

    async def _evaluator_answers(self) -> bool:
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
        rounds: dict[int, Round] = {}
        number = max(0, record.open_round - 1)
        # The record of an open run is a little behind.
        while number <= record.open_round or number - 1 in rounds:
            round_ = await read_round(self._bus, RoundRef(record.name, number))
            if round_.opened is not None:
                rounds[number] = round_
            number += 1
        return rounds


def _lacks_score(record: RunRecord, run: RunReport, report: RoundReport) -> bool:
    """Whether a score of the round is due and may still come: models are scored in their order."""
    later = [r for r in run.rounds if r.round > report.round and due(record.plan, r.round)]
    return not _scored(record, report) and not any(_scored(record, r) for r in later)


def _scored(record: RunRecord, report: RoundReport) -> bool:
    """Whether a round has the scores that its plan wants, or the reason why it has none."""
    if report.state == "aborted" or not due(record.plan, report.round):
        return True
    if report.reason and NOT_SCORED in report.reason:
        return True
    federated = any(name.startswith("federated_") for name in report.metrics)
    central = any(not name.startswith(("train_", "federated_")) for name in report.metrics)
    return central >= record.plan.evaluate.central and federated >= record.plan.evaluate.federated

"""The evaluator's shell: sees a new model, scores it, has its cohort's scores added up, registers it.

Which scores are due, and what the cohort's come to, is decided in `fedbus.rounds.evaluating`.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fedbus.base.clock import Clock, SystemClock
from fedbus.base.errors import (
    CodecError,
    ConfigError,
    ContractError,
    RemoteContractError,
    StreamMissing,
    TaskError,
)
from fedbus.base.setbacks import Setbacks
from fedbus.bus import Bus
from fedbus.bus.hearing import hear_beats, hear_progress
from fedbus.bus.log import RESYNC_S, RoundLog, read_round
from fedbus.bus.micro import serve
from fedbus.bus.modelcache import ModelCache, model_cache
from fedbus.bus.runs import Runs
from fedbus.bus.store import last_seq, persist
from fedbus.rounds.evaluating import (
    awaited,
    federated_entry,
    federated_score,
    never_asked,
    scoring_round,
    wanting,
    wants_central,
    wants_federated,
)
from fedbus.rounds.fold import Round
from fedbus.rounds.roster import BEAT_S, Roster
from fedbus.rounds.versions import registrable
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Evaluated as Score
from fedbus.tasks.task import Site
from fedbus.telemetry.ofround import root_of
from fedbus.telemetry.spans import OpenSpan
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Evaluated
from fedbus_schemas.messages import Beat, Progress
from fedbus_schemas.plan import Plan

from fedbus_evaluator.cohort import CohortScores
from fedbus_evaluator.registering import Registering

log = logging.getLogger(__name__)


class Evaluator:
    """Scores the model of every round that wants it.

    Args:
        bus: the connection.
        folder: where the stack keeps its files; the latest models are kept here.
        clock: the machine's by default.
    """

    def __init__(self, bus: Bus, folder: Path | None = None, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._folder = folder
        self._runs = Runs(bus)
        self._plans: dict[str, Plan] = {}
        self._log = RoundLog(bus, self._changed)
        self._setbacks: Setbacks[RoundRef] = Setbacks("score", log)
        self._unregistered: set[RoundRef] = set()  # older ones, whose models the registry may lack
        self._wake = asyncio.Event()
        self._waiting = False  # for members that score a run's last model
        self._roster = Roster()
        self._cohort = CohortScores(bus)
        self._registering = Registering(bus, self._runs, self._clock)
        self._tracer = Tracer(bus, "evaluator", self._clock)

    async def run(self) -> None:
        """Score what is due, then wait for more, until cancelled."""
        with (
            tempfile.TemporaryDirectory(prefix="evaluator-", dir=self._folder) as scratch,
            model_cache(self._bus, self._folder) as models,
        ):
            trainer = Trainer(Path(scratch))
            try:
                self._tracer.start()
                # Answering pings tells a watcher that scores will come, also while much is restored.
                await serve(self._bus, "evaluator", {"import": self._registering.import_model})
                await self._log.start(await persist(self._bus, self._restore))
                await hear_beats(self._bus, self._beat)
                await hear_progress(self._bus, self._progress)
                while True:
                    await self._score_all(trainer, models)
                    # Silence is noticed by the clock alone, and a member's word that it is done may be lost.
                    pause = BEAT_S if self._waiting else RESYNC_S
                    now = self._clock.monotonic()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.01, self._setbacks.next_try(now + pause) - now)):
                            await self._wake.wait()
                    self._wake.clear()
            finally:
                await self._log.close()
                await self._tracer.close()
                await trainer.stop()

    # What is heard

    def _changed(self, ref: RoundRef) -> None:
        """Most entries come while a round is open, and make nothing due."""
        round_, plan = self._log.rounds[ref], self._plans.get(ref.run)
        asked = plan is None or plan.evaluate.federated  # members scored its base
        if round_.aggregated or round_.ended or (round_.closing and asked):
            self._wake.set()

    def _beat(self, beat: Beat) -> None:
        self._roster.hear(beat, self._clock.now())

    def _progress(self, progress: Progress) -> None:
        self._roster.hear_progress(progress, self._clock.now())
        if self._waiting and progress.phase == "evaluate":
            self._wake.set()

    # What is due

    async def _restore(self) -> int:
        """Take up the last rounds, find older unregistered models; returns where to follow the log from."""
        first = await last_seq(self._bus, subjects.ROUNDS) + 1
        for name in await self._runs.names():
            try:
                record, _ = await self._runs.get(name)
            except RemoteContractError as error:
                log.error("run left alone: %s", error.message, extra={"action": "restore", "run": name})
                continue
            # A model's cohort scores it one round later: the last two rounds can want something.
            recent = range(max(0, record.open_round - 1), record.open_round + 1)
            missing = await self._registering.missing(name, range(recent.start))
            self._unregistered |= {RoundRef(name, number) for number in missing}
            for number in recent:
                round_ = await read_round(self._bus, RoundRef(name, number))
                if round_.opened:
                    self._log.rounds[RoundRef(name, number)] = round_
            if not record.done:
                first = min(first, record.open_seq)
        return first

    async def _score_all(self, trainer: Trainer, models: ModelCache) -> None:
        self._waiting = False
        for ref in sorted(self._log.rounds):
            await self._try(ref, partial(self._settle, ref, trainer, models))
        for ref in sorted(self._unregistered):
            await self._try(ref, partial(self._register_older, ref))
        self._forget()

    async def _try(self, ref: RoundRef, work: Callable[[], Awaitable[None]]) -> None:
        """Do what is due for one model. What goes wrong is told once, tried again, and stops no other."""
        if not self._setbacks.ready(ref, self._clock.monotonic()):
            return
        try:
            await work()
        except Exception as error:
            self._setbacks.put_off(ref, error, self._clock.monotonic(), run=ref.run, round=ref.number)
        else:
            self._setbacks.clear(ref)

    async def _register_older(self, ref: RoundRef) -> None:
        """Register a model that was made while no evaluator ran; it stays without a score."""
        round_ = await read_round(self._bus, ref)
        if round_.aggregated:
            await self._registering.register(ref, round_, await self._plan(ref.run))
        self._unregistered.discard(ref)

    async def _settle(self, ref: RoundRef, trainer: Trainer, models: ModelCache) -> None:
        """Do what is due for one round's model."""
        round_, plan = self._log.rounds[ref], await self._plan(ref.run)
        if wants_central(plan, ref.number, round_):
            with self._tracer.span("evaluate", root_of(round_), run=ref.run, round=ref.number) as span:
                await self._score(ref, trainer, models, span)
            self._tracer.flush_soon()
        if wants_federated(plan, ref.number, round_):
            await self._add_up(ref, plan)
        if registrable(plan, ref.number, round_):
            await self._registering.register(ref, round_, plan)

    async def _add_up(self, ref: RoundRef, plan: Plan) -> None:
        """Append what the cohort's scores of a round's model come to, once nobody is waited for any more."""
        round_ = self._log.rounds[ref]
        asked = RoundRef(ref.run, scoring_round(plan, ref.number))
        scorers = self._log.rounds.get(asked)
        assert round_.aggregated is not None
        model = round_.aggregated.model
        if scorers is None or scorers.opened is None:
            # The next round waits for workers, or the operator has ended the run.
            if await self._never_opens(asked):
                await self._append(ref, federated_entry(self._clock.now(), model, never_asked(round_)))
            return
        if ref.number < plan.rounds and awaited(
            plan, ref.number, scorers, (), self._roster, self._clock.now()
        ):
            return  # the log tells when it closes
        reports = await self._cohort.of(asked, model, scorers.seats)
        if awaited(plan, ref.number, scorers, reports, self._roster, self._clock.now()):
            self._waiting = True
            return
        score = federated_score(scorers, reports)
        await self._append(ref, federated_entry(self._clock.now(), model, score))
        said = " ".join(f"{name}={value:.4f}" for name, value in score.metrics.items())
        about = {"action": "evaluated", "run": ref.run, "round": ref.number}
        log.info("evaluated by %d members: %s", len(score.workers), said, extra=about)

    async def _never_opens(self, ref: RoundRef) -> bool:
        """Whether a run ended without this round. The stream is asked: our copy of the log may be behind."""
        record, _ = await self._runs.get(ref.run)
        return record.done and (await read_round(self._bus, ref)).opened is None

    async def _append(self, ref: RoundRef, entry: Evaluated) -> None:
        while not await self._log.append(ref, "evaluator", entry):
            pass  # another service appended meanwhile; nothing it can say changes the score

    async def _score(self, ref: RoundRef, trainer: Trainer, models: ModelCache, span: OpenSpan) -> None:
        round_ = self._log.rounds[ref]
        made = round_.aggregated
        assert made is not None
        plan = await self._plan(ref.run)
        failed: str | None = None
        try:
            model = await models.get(made.model)
            site = Site(held_out=True)
            await trainer.begin(ref.run)
            score = await trainer.evaluate(plan.task, plan.train, site, model.table, model.path)
        except (TaskError, ConfigError, CodecError, ContractError, StreamMissing, OSError) as error:
            # A hub need not have the task, nor data to score it on, nor room for the model: the record says
            # so, and the run goes on.
            score, failed = Score(0, {}), str(error)[:2000]
            span.fail(failed)
        span.attributes["examples"] = score.num_examples
        entry = Evaluated(
            at=self._clock.now(),
            model=made.model,
            num_examples=score.num_examples,
            metrics=dict(score.metrics),
            failed=failed,
        )
        await self._append(ref, entry)
        said = failed or " ".join(f"{name}={value:.4f}" for name, value in score.metrics.items())
        about = {"action": "evaluated", "run": ref.run, "round": ref.number}
        log.log(logging.ERROR if failed else logging.INFO, "evaluated: %s", said, extra=about)

    async def _plan(self, run: str) -> Plan:
        if run not in self._plans:
            self._plans[run] = (await self._runs.get(run))[0].plan
        return self._plans[run]

    def _forget(self) -> None:
        """Free rounds that ended and want nothing any more."""
        for run, plan in self._plans.items():
            rounds = self._log.of(run)
            needed = [n for n, r in rounds.items() if self._is_needed(RoundRef(run, n), plan, r)]
            before = min(needed, default=max(rounds, default=0))
            for memory in (self._log, self._cohort, self._registering):
                memory.forget(run, before)
        self._setbacks.keep(self._log.rounds.keys() | self._unregistered)

    def _is_needed(self, ref: RoundRef, plan: Plan, round_: Round) -> bool:
        if round_.opened is None:
            return False  # its beginning was before our time: a leftover entry of a round that ended
        settled = round_.ended and self._registering.is_registered(ref, round_)
        return not settled or wanting(plan, ref.number, round_)

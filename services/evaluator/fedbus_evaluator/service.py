"""The evaluator's shell: sees a new model, has its child score it on held-out data, appends `evaluated`."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from fedbus.base.clock import Clock, SystemClock
from fedbus.base.errors import CodecError, ConfigError, ContractError, FedbusError, TaskError
from fedbus.base.setbacks import Setbacks
from fedbus.bus import Bus
from fedbus.bus.log import RESYNC_S, RoundLog, read_round
from fedbus.bus.micro import serve
from fedbus.bus.models import load_model, read_manifest
from fedbus.bus.runs import Runs
from fedbus.bus.store import last_seq, persist
from fedbus.codec.grid import Grid
from fedbus.rounds.evaluating import wanting
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Evaluated as Score
from fedbus.tasks.task import Site
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Evaluated
from fedbus_schemas.plan import Plan

log = logging.getLogger(__name__)


class Evaluator:
    """Scores the model of every round that wants it.

    Args:
        bus: the connection.
        folder: where the stack keeps its files; models are kept here while they are scored.
        clock: the machine's by default.
    """

    def __init__(self, bus: Bus, folder: Path | None = None, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._folder = folder
        self._runs = Runs(bus)
        self._plans: dict[str, Plan] = {}
        self._log = RoundLog(bus, lambda _: self._wake.set())
        self._setbacks: Setbacks[RoundRef] = Setbacks()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Score what is due, then wait for more, until cancelled."""
        with tempfile.TemporaryDirectory(prefix="evaluator-", dir=self._folder) as scratch:
            trainer = Trainer(Path(scratch))
            try:
                await self._log.start(await persist(self._bus, self._first_unscored))
                # Answering pings tells a watcher that scores will come.
                await serve(self._bus, "evaluator", {})
                while True:
                    await self._score_all(trainer, Path(scratch) / "model.f32")
                    pause = (
                        self._setbacks.next_try(self._clock.monotonic() + RESYNC_S) - self._clock.monotonic()
                    )
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(0.01, pause)):
                            await self._wake.wait()
                    self._wake.clear()
            finally:
                await self._log.close()
                await trainer.stop()

    async def _first_unscored(self) -> int:
        """Where the oldest round begins that is open, or ended its run without a score."""
        first = await last_seq(self._bus, subjects.ROUNDS) + 1
        for name in await self._runs.names():
            record, _ = await self._runs.get(name)
            last = await read_round(self._bus, RoundRef(name, record.open_round)) if record.done else None
            if last is None or wanting(record.plan, record.open_round, last):
                first = min(first, record.open_seq)
        return first

    async def _score_all(self, trainer: Trainer, path: Path) -> None:
        for ref in sorted(self._log.rounds):
            if not self._setbacks.ready(ref, self._clock.monotonic()):
                continue
            try:
                if wanting(await self._plan(ref.run), ref.number, self._log.rounds[ref]):
                    await self._score(ref, trainer, path)
                self._setbacks.clear(ref)
            except Exception as error:
                if self._setbacks.note(ref, f"{type(error).__name__}: {error}", self._clock.monotonic()):
                    about = {"action": "retry", "run": ref.run, "round": ref.number}
                    known = isinstance(error, FedbusError)
                    log.warning("score put off: %s", error, extra=about, exc_info=None if known else error)
        self._forget()

    async def _score(self, ref: RoundRef, trainer: Trainer, path: Path) -> None:
        round_ = self._log.rounds[ref]
        made = round_.aggregated
        assert made is not None
        plan = await self._plan(ref.run)
        failed: str | None = None
        try:
            score = await self._ask(trainer, plan, made.model, path)
        except (TaskError, ConfigError, CodecError, ContractError, OSError) as error:
            # A hub need not have the task, nor data to score it on: the record says so, and the run goes on.
            score, failed = Score(0, {}), str(error)[:2000]
        entry = Evaluated(
            at=self._clock.now(),
            model=made.model,
            num_examples=score.num_examples,
            metrics=dict(score.metrics),
            failed=failed,
        )
        while not round_.evaluated and not await self._log.append(ref, "evaluator", entry):
            pass  # another service appended meanwhile; nothing it can say changes the score
        said = failed or " ".join(f"{name}={value:.4f}" for name, value in score.metrics.items())
        about = {"action": "evaluated", "run": ref.run, "round": ref.number}
        log.log(logging.ERROR if failed else logging.INFO, "evaluated: %s", said, extra=about)

    async def _ask(self, trainer: Trainer, plan: Plan, model: str, path: Path) -> Score:
        manifest = await read_manifest(self._bus, model)
        vector = np.memmap(path, np.float32, "w+", shape=(Grid.of(manifest.table).size,))
        await load_model(self._bus, manifest, vector)
        await asyncio.to_thread(vector.flush)
        return await trainer.evaluate(plan.task, plan.train, Site(held_out=True), manifest.table, path)

    async def _plan(self, run: str) -> Plan:
        if run not in self._plans:
            self._plans[run] = (await self._runs.get(run))[0].plan
        return self._plans[run]

    def _forget(self) -> None:
        """Free rounds that ended and want nothing any more."""
        for run, plan in self._plans.items():
            rounds = self._log.of(run)
            needed = [n for n, r in rounds.items() if not r.ended or wanting(plan, n, r)]
            self._log.forget(run, min(needed, default=max(rounds, default=0)))

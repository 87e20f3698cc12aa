"""One assignment, step by step: download, train, encode, upload, commit. A restart goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from fedbus.base.clock import random_token
from fedbus.bus import Bus
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.models import pack_with_body
from fedbus.bus.store import Publisher
from fedbus.codec.grid import Grid
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Trained
from fedbus.telemetry.spans import OpenSpan, note, step
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Phase
from fedbus_schemas.update import EvaluationReport, TensorSpec, UpdateManifest

from fedbus_worker.assignments import Assignment
from fedbus_worker.encoding import Encoding, UpdateDamaged
from fedbus_worker.scoring import Scoring
from fedbus_worker.spool import Spool, SpooledUpdate, Spools, boot_id

Report = Callable[[Phase, float], None]
log = logging.getLogger(__name__)


class Work:
    """Does assignments, one at a time."""

    def __init__(
        self,
        bus: Bus,
        trainer: Trainer,
        state: Path,
        models: ModelCache,
        data: Path | None,
        labels: dict[str, str],
    ) -> None:
        self._bus = bus
        self._trainer = trainer
        self._models = models
        self._spools = Spools(state / "spool")
        self._data = str(data) if data else None
        self._labels = labels
        self._scoring = Scoring(bus, trainer, state / "scores")

    def is_sent(self, assignment: Assignment) -> bool:
        """Whether the manifest of this assignment was acknowledged."""
        spool = self._spools.known(assignment.announcement, assignment.member.node)
        return spool is not None and spool.sent

    def is_score_wanted(self, assignment: Assignment) -> bool:
        """Whether the assignment asks for a score of a model that was not sent yet."""
        return self._scoring.is_wanted(assignment)

    async def score(self, assignment: Assignment, report: Report) -> EvaluationReport:
        """Score the model that the assignment asks for on this member's data.

        Raises:
            BusError: the broker is away, or refuses what we send.
        """
        report("evaluate", 0.0)
        site = assignment.site(self._data, self._labels)
        sent = await self._scoring.score(assignment, site, self._models.get)
        report("evaluate", 1.0)
        return sent

    def spooled(self) -> set[RoundRef]:
        """Rounds of which there are files."""
        return self._spools.refs()

    def has_attempt(self, ref: RoundRef, attempt: str | None) -> bool:
        """Whether an attempt at a round is the one that is spooled here."""
        updates = [spool.update for spool in self._spools.of(ref)]
        return any(update is not None and update.attempt == attempt for update in updates)

    def settle(self, ref: RoundRef, counted: bool | None) -> None:
        """A round is over: keep what its update lost if it counted; forget the rest."""
        for spool in self._spools.of(ref):
            spool.settle(counted)

    async def forget_runs(self, over: Callable[[str], bool]) -> None:
        """Delete the files of runs that are over."""
        for run in self._spools.runs():
            if over(run):
                await self._spools.forget(run)

    async def perform(self, assignment: Assignment, report: Report) -> UpdateManifest:
        """Do what is left of an assignment.

        Raises:
            TaskError: the training code failed.
            BusError: the broker refuses what we send.
        """
        spool = self._spools.open(assignment.announcement, assignment.member.node)
        trained = spool.trained()
        if trained is not None:
            try:
                return await self._send(assignment, spool, trained, report)
            except UpdateDamaged as error:
                about = {"run": assignment.ref.run, "round": assignment.ref.number}
                log.warning("the spooled update is damaged, and made anew: %s", error, extra=about)
        spool.begin(assignment.ref.number)
        if self.is_score_wanted(assignment):
            with step("evaluate"):
                await self.score(assignment, report)
        trained = await self._train(assignment, spool, report)
        return await self._send(assignment, spool, trained, report)

    async def _train(self, assignment: Assignment, spool: Spool, report: Report) -> SpooledUpdate:
        plan, base = assignment.announcement.plan, assignment.announcement.base
        if base is None:
            report("train", 0.0)
            # The plan's own seed: every member makes the same first model.
            with step("train"):
                table = await self._trainer.init(plan.task, plan.train, plan.seed, spool.delta)
            return _trained(spool, 0, table, Trained(num_examples=1))
        report("download", 0.0)
        with step("download") as span:

            def downloaded(fraction: float) -> None:
                span.event("chunk", chunk=len(span.events))
                report("download", fraction)

            model = await self._models.get(base, downloaded)
        report("train", 0.0)
        with step("train") as span:
            trained = await self._trainer.train(
                plan.task,
                plan.train,
                assignment.seed,
                assignment.ref.number,
                assignment.site(self._data, self._labels),
                model.table,
                model.path,
                spool.delta,
                lambda fraction: report("train", fraction),
            )
            span.attributes["examples"] = trained.num_examples
        return _trained(spool, assignment.ref.number, model.table, trained)

    async def _send(
        self, assignment: Assignment, spool: Spool, trained: SpooledUpdate, report: Report
    ) -> UpdateManifest:
        """Encode, and upload meanwhile what is encoded; then the manifest."""
        with Encoding(assignment, spool, trained) as encoding:
            with step("encode"):  # the others are encoded while those before them are under way
                report("encode", 0.0)
                first = await anext(encoding, None)
            with step("upload", attempt=trained.attempt) as span:
                report("upload", 0.0)
                packed = None
                if first is not None and len(encoding.grid.spans) == 1:
                    packed = pack_with_body(encoding.finish(), first[1], self._bus.max_message)
                if first is not None and packed is None:
                    await self._send_chunks(spool, encoding, first, span, report)
                manifest = encoding.finish()
                span.attributes["bytes"] = manifest.size_bytes
                spool.offer()
                subject = subjects.update(*encoding.seat, "manifest")
                await Publisher(self._bus).put(subject, packed or manifest.pack())
                report("upload", 1.0)
        note(attempt=manifest.attempt, bytes=manifest.size_bytes, examples=manifest.num_examples)
        spool.mark_sent()
        return manifest

    async def _send_chunks(
        self, spool: Spool, encoding: Encoding, first: tuple[int, bytes], span: OpenSpan, report: Report
    ) -> None:
        count, done = len(encoding.grid.spans), len(encoding.stored)

        def stored(subject: str, size: int) -> None:
            nonlocal done
            index = int(subject.rsplit(".", 1)[1])
            spool.note_stored(index)
            span.event("chunk", chunk=index, bytes=size)
            done += 1
            report("upload", done / count)

        async def chunks() -> AsyncGenerator[tuple[str, bytes]]:
            yield subjects.update(*encoding.seat, first[0]), first[1]
            async for index, data in encoding:
                yield subjects.update(*encoding.seat, index), data

        await Publisher(self._bus).put_all(chunks(), stored)


def _trained(spool: Spool, number: int, table: list[TensorSpec], trained: Trained) -> SpooledUpdate:
    """What is known of an attempt, which goes on under its name after a restart."""
    update = SpooledUpdate(
        round=number,
        attempt=random_token(),
        table=table,
        num_examples=trained.num_examples,
        metrics=dict(trained.metrics),
        boot=boot_id(),
    )
    if len(Grid.of(table).spans) > 1:  # or else it is soon written with the manifest
        spool.save(update)
    return update

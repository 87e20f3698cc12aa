"""One assignment, step by step: download, train, encode, upload, commit. A restart goes on where it was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from pathlib import Path

from fedbus.base.clock import random_token
from fedbus.bus import Bus
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.models import pack_with_body
from fedbus.bus.store import Publisher
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Trained
from fedbus.telemetry.spans import OpenSpan, note, step
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Phase
from fedbus_schemas.update import EvaluationReport, TensorSpec, UpdateManifest

from fedbus_worker.assignments import Assignment
from fedbus_worker.encoding import Encoding, Seat, seat_of
from fedbus_worker.scoring import Scoring
from fedbus_worker.spool import Spool, SpooledTraining, SpooledUpdate, Spools, boot_id

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
        return any(update is not None and update.manifest.attempt == attempt for update in updates)

    def settle(self, ref: RoundRef, counted: bool | None) -> None:
        """A round is over: keep what its update lost if it counted; forget the rest."""
        for spool in self._spools.of(ref):
            spool.settle(counted)

    async def forget_runs(self, over: Callable[[str], bool]) -> None:
        """Delete the files of runs that are over."""
        for run in self._spools.runs():
            if over(run):
                await self._spools.forget(run)

    async def perform(self, assignment: Assignment, report: Report) -> SpooledUpdate:
        """Do what is left of an assignment.

        Raises:
            TaskError: the training code failed.
            BusError: the broker refuses what we send.
        """
        spool = self._spools.open(assignment.announcement, assignment.member.node)
        update = spool.update
        if update is not None and not await asyncio.to_thread(spool.intact, update):
            log.warning("the spooled update is damaged, and made anew", extra={"run": assignment.ref.run})
            update = None
        if update is None:
            trained = spool.training()
            if trained is None:
                spool.begin(assignment.ref.number)
                if self.is_score_wanted(assignment):
                    with step("evaluate"):
                        await self.score(assignment, report)
                trained = await self._train(assignment, spool, report)
            encoding = Encoding(assignment, spool, trained)
            if encoding.is_small:
                update = await self._encode(encoding, report)
                await self._upload_all(spool, update, report)
            else:
                spool.save_training(trained)
                update = await self._encode_and_upload(spool, encoding, report)
        else:
            await self._upload_all(spool, update, report)
        manifest = update.manifest
        note(attempt=manifest.attempt, bytes=manifest.size_bytes, examples=manifest.num_examples)
        spool.mark_sent()
        return update

    async def _train(self, assignment: Assignment, spool: Spool, report: Report) -> SpooledTraining:
        plan, base = assignment.announcement.plan, assignment.announcement.base
        if base is None:
            report("train", 0.0)
            # The plan's own seed: every member makes the same first model.
            with step("train"):
                table = await self._trainer.init(plan.task, plan.train, plan.seed, spool.delta)
            return _trained(0, table, Trained(num_examples=1))
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
        return _trained(assignment.ref.number, model.table, trained)

    async def _encode(self, encoding: Encoding, report: Report) -> SpooledUpdate:
        report("encode", 0.0)
        with step("encode") as span:
            update = await encoding.run(lambda fraction: report("encode", fraction))
            span.attributes["bytes"] = update.manifest.size_bytes
        return update

    async def _encode_and_upload(self, spool: Spool, encoding: Encoding, report: Report) -> SpooledUpdate:
        """Encode, and upload meanwhile what is encoded."""

        async def encode() -> SpooledUpdate:
            update = await self._encode(encoding, report)
            report("upload", len(spool.stored()) / len(update.sizes))
            return update

        def uploaded(phase: Phase, fraction: float) -> None:
            if encoded.done():  # until then it is told how far the encoding is
                report(phase, fraction)

        encoded = asyncio.create_task(encode())
        try:
            await encoding.reached(0, encoded)
            with step("upload", attempt=encoding.attempt) as span:
                ready = encoding.indices(encoded)
                await self._send_chunks(spool, encoding.seat, encoding.sizes, ready, span, uploaded)
                update = await asyncio.shield(encoded)
                span.attributes["bytes"] = update.manifest.size_bytes
                await self._send_manifest(spool, update.manifest, report)
        except asyncio.CancelledError:
            encoding.stop()
            raise
        finally:
            # Also where the broker is away: what is encoded need not be trained again.
            await asyncio.gather(encoded, return_exceptions=True)
        return encoded.result()

    async def _upload_all(self, spool: Spool, update: SpooledUpdate, report: Report) -> None:
        """Upload what is missing of an encoded update."""
        manifest, sizes = update.manifest, update.sizes
        with step("upload", attempt=manifest.attempt, bytes=manifest.size_bytes) as span:
            report("upload", 0.0)
            packed = None
            if len(sizes) == 1:
                packed = pack_with_body(manifest, spool.read(sizes, 0), self._bus.max_message)
            if packed is None:
                missing = sorted(set(range(len(sizes))) - spool.stored())
                await self._send_chunks(spool, seat_of(manifest), sizes, _each(missing), span, report)
            await self._send_manifest(spool, manifest, report, packed)

    async def _send_chunks(
        self,
        spool: Spool,
        seat: Seat,
        sizes: list[int],
        indices: AsyncIterable[int],
        span: OpenSpan,
        report: Report,
    ) -> None:
        done = 0

        def stored(subject: str, size: int) -> None:
            nonlocal done
            index = int(subject.rsplit(".", 1)[1])
            spool.note_stored(index)
            span.event("chunk", chunk=index, bytes=size)
            done += 1
            report("upload", done / len(sizes))

        async def chunks() -> AsyncGenerator[tuple[str, bytes]]:
            async for index in indices:
                yield subjects.update(*seat, index), await asyncio.to_thread(spool.read, sizes, index)

        await Publisher(self._bus).put_all(chunks(), stored)

    async def _send_manifest(
        self, spool: Spool, manifest: UpdateManifest, report: Report, packed: bytes | None = None
    ) -> None:
        spool.offer()
        subject = subjects.update(*seat_of(manifest), "manifest")
        await Publisher(self._bus).put(subject, packed or manifest.pack())
        report("upload", 1.0)


def _trained(number: int, table: list[TensorSpec], trained: Trained) -> SpooledTraining:
    return SpooledTraining(
        round=number,
        attempt=random_token(),
        table=table,
        num_examples=trained.num_examples,
        metrics=dict(trained.metrics),
        boot=boot_id(),
    )


async def _each(indices: Sequence[int]) -> AsyncGenerator[int]:
    for index in indices:
        yield index

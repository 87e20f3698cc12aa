"""One assignment, step by step: download, train, encode, upload, commit. A restart goes on where it was."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import numpy as np
from fedbus.base.clock import random_token
from fedbus.base.errors import PayloadTooLarge
from fedbus.bus import Bus
from fedbus.bus.models import load_model, read_manifest
from fedbus.bus.store import Publisher
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Trained
from fedbus.telemetry.spans import OpenSpan, note, step
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Phase
from fedbus_schemas.update import EvaluationReport, TensorSpec, UpdateManifest

from fedbus_worker.assignments import Assignment
from fedbus_worker.scoring import Scoring
from fedbus_worker.spool import Spool, SpooledUpdate

Report = Callable[[Phase, float], None]
log = logging.getLogger(__name__)
MODELS_KEPT = 2


class Work:
    """Does assignments, one at a time."""

    def __init__(
        self, bus: Bus, trainer: Trainer, state: Path, data: Path | None, labels: dict[str, str]
    ) -> None:
        self._bus = bus
        self._trainer = trainer
        self._models = state / "models"
        self._spools = state / "spool"
        self._data = str(data) if data else None
        self._labels = labels
        self._scoring = Scoring(bus, trainer, state / "scores")
        self._models.mkdir(parents=True, exist_ok=True)
        self._spools.mkdir(parents=True, exist_ok=True)
        for broken_off in self._models.glob("*.part"):
            broken_off.unlink()

    def is_sent(self, assignment: Assignment) -> bool:
        """Whether the manifest of this assignment was acknowledged."""
        if not (self._spools / assignment.key).exists():
            return False
        update = Spool(self._spools / assignment.key).load()
        return update is not None and update.sent

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
        sent = await self._scoring.score(assignment, site, lambda digest: self._model(digest, _untold))
        report("evaluate", 1.0)
        return sent

    def spooled(self) -> dict[str, RoundRef]:
        """Assignments that have files: keys and rounds. A stray file is none."""
        found: dict[str, RoundRef] = {}
        for path in sorted(self._spools.iterdir()):
            run, _, rest = path.name.partition(".")
            number, _, node = rest.partition(".")
            if number.isascii() and number.isdigit() and node:
                found[path.name] = RoundRef(run, int(number))
        return found

    def has_attempt(self, ref: RoundRef, attempt: str | None) -> bool:
        """Whether an attempt at a round is the one that is spooled here."""
        keys = [key for key, spooled in self.spooled().items() if spooled == ref]
        updates = [Spool(self._spools / key).load() for key in keys]
        return any(update is not None and update.manifest.attempt == attempt for update in updates)

    def forget(self, key: str) -> None:
        """Delete an assignment's files."""
        Spool(self._spools / key).remove()

    async def perform(self, assignment: Assignment, report: Report) -> SpooledUpdate:
        """Do what is left of an assignment.

        Raises:
            TaskError: the training code failed.
            BusError: the broker refuses what we send.
        """
        spool = Spool(self._spools / assignment.key)
        update = spool.load()
        if update is not None and not await asyncio.to_thread(spool.intact, update):
            log.warning("the spooled update is damaged, and made anew", extra={"run": assignment.ref.run})
            update = None
        if update is None:
            if self.is_score_wanted(assignment):
                with step("evaluate"):
                    await self.score(assignment, report)
            table, trained = await self._train(assignment, spool, report)
            with step("encode") as span:
                update = await asyncio.to_thread(self._encode, assignment, spool, table, trained, report)
                span.attributes["bytes"] = update.manifest.size_bytes
        manifest = update.manifest
        note(attempt=manifest.attempt, bytes=manifest.size_bytes, examples=manifest.num_examples)
        with step("upload", attempt=manifest.attempt, bytes=manifest.size_bytes) as span:
            await self._upload(spool, update, report, span)
        await asyncio.to_thread(spool.save, update.model_copy(update={"sent": True}))
        return update

    async def _train(
        self, assignment: Assignment, spool: Spool, report: Report
    ) -> tuple[Sequence[TensorSpec], Trained]:
        plan, base = assignment.announcement.plan, assignment.announcement.base
        if base is None:
            report("train", 0.0)
            # The plan's own seed: every member makes the same first model.
            with step("train"):
                table = await self._trainer.init(plan.task, plan.train, plan.seed, spool.delta)
            return table, Trained(num_examples=1)
        report("download", 0.0)
        with step("download") as span:

            def downloaded(fraction: float) -> None:
                span.event("chunk", chunk=len(span.events))
                report("download", fraction)

            model, table = await self._model(base, downloaded)
        report("train", 0.0)
        with step("train") as span:
            trained = await self._trainer.train(
                plan.task,
                plan.train,
                assignment.seed,
                assignment.ref.number,
                assignment.site(self._data, self._labels),
                table,
                model,
                spool.delta,
                lambda fraction: report("train", fraction),
            )
            span.attributes["examples"] = trained.num_examples
        return table, trained

    async def _model(self, digest: str, progress: Callable[[float], None]) -> tuple[Path, list[TensorSpec]]:
        """The base model as a flat file; downloaded once."""
        manifest = await read_manifest(self._bus, digest)
        path = self._models / f"{digest}.f32"
        if not path.exists():
            part = path.with_suffix(".part")
            vector = np.memmap(part, np.float32, "w+", shape=(Grid.of(manifest.table).size,))
            await load_model(self._bus, manifest, vector, progress)
            # In a thread: a slow disk must not keep the worker from beating.
            await asyncio.to_thread(vector.flush)
            part.replace(path)
        os.utime(path)
        kept = sorted(self._models.glob("*.f32"), key=lambda p: p.stat().st_mtime)
        for old in kept[:-MODELS_KEPT]:
            old.unlink()
        return path, manifest.table

    def _encode(
        self,
        assignment: Assignment,
        spool: Spool,
        table: Sequence[TensorSpec],
        trained: Trained,
        report: Report,
    ) -> SpooledUpdate:
        announcement, plan = assignment.announcement, assignment.announcement.plan
        report("encode", 0.0)
        spool.restart()
        framing = Framing(plan.codec.up.name, plan.codec.up.params)
        grid = Grid.of(table)
        delta: Vector = np.memmap(spool.delta, np.float32, "r", shape=(grid.size,))
        sizes: list[int] = []
        digests: list[str] = []
        with spool.chunks.open("wb") as file:
            for span in grid.spans:
                data = framing.encode(span, np.ascontiguousarray(delta[span.offset : span.end]))
                file.write(data)
                sizes.append(len(data))
                digests.append(hashlib.sha256(data).hexdigest())
                report("encode", span.end / grid.size)
        spool.delta.unlink()
        manifest = UpdateManifest(
            run=announcement.run,
            round=announcement.round,
            worker=assignment.member.worker,
            node=assignment.member.node,
            attempt=random_token(),
            plan=announcement.plan_digest,
            base=announcement.base,
            codec=plan.codec.up.name,
            num_examples=trained.num_examples,
            metrics=dict(trained.metrics),
            chunks=digests,
            size_bytes=sum(sizes),
            table=None if announcement.base else list(table),
        )
        if manifest.size_bytes > plan.max_update_bytes:
            raise PayloadTooLarge(
                f"the update weighs {manifest.size_bytes / 1e6:.1f} MB, "
                f"the plan allows {plan.limits.mb_per_worker:g} MB",
                hint="raise limits.mb_per_worker, or choose a codec that compresses more",
            )
        update = SpooledUpdate(manifest=manifest, sizes=sizes)
        spool.save(update)
        return update

    async def _upload(self, spool: Spool, update: SpooledUpdate, report: Report, span: OpenSpan) -> None:
        report("upload", 0.0)
        manifest, publisher = update.manifest, Publisher(self._bus)
        seat = (manifest.run, manifest.round, manifest.worker, manifest.node, manifest.attempt)
        missing = spool.unsent(update)
        if len(missing) == len(update.sizes) == 1:
            # One write instead of two, where the chunk fits beside its manifest.
            with_body = manifest.model_copy(update={"body": spool.chunks.read_bytes()})
            if len(with_body.pack()) <= self._bus.max_message:
                manifest, missing = with_body, []
        if missing:
            done = [sum(update.sizes) - sum(update.sizes[i] for i in missing)]

            def stored(subject: str, size: int) -> None:
                index = int(subject.rsplit(".", 1)[1])
                spool.note_stored(index)
                span.event("chunk", chunk=index, bytes=size)
                done[0] += size
                report("upload", done[0] / manifest.size_bytes)

            async def chunks() -> AsyncGenerator[tuple[str, bytes]]:
                for index in missing:
                    yield subjects.update(*seat, index), await asyncio.to_thread(spool.read, update, index)

            await publisher.put_all(chunks(), stored)
        await publisher.put(subjects.update(*seat, "manifest"), manifest.pack())
        report("upload", 1.0)


def _untold(fraction: float) -> None:
    """A download of which nobody needs to hear."""

"""A trained difference on its way into the spool: encoded in a thread, chunk by chunk.

The upload may follow it chunk by chunk; what it needs to know is here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack

from fedbus.base.errors import FedbusError, PayloadTooLarge
from fedbus.bus.modelfile import read_vector, write_all
from fedbus.bus.threads import apart
from fedbus.codec.auto import AUTO, choose
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing, up_codec
from fedbus.codec.grid import Grid
from fedbus_schemas.plan import Named
from fedbus_schemas.update import UpdateManifest

from fedbus_worker.assignments import Assignment
from fedbus_worker.feedback import Feedback
from fedbus_worker.spool import Spool, SpooledTraining, SpooledUpdate, boot_id

log = logging.getLogger(__name__)

QUICK_BYTES = 4 << 20
Seat = tuple[str, int, str, str, str]  # run, round, worker, node, attempt: what names an update's messages


class Stopped(FedbusError):
    """The round was over before the update was encoded."""


class Encoding:
    """One attempt at a round.

    Args:
        assignment: what it is for.
        spool: where `delta` is, and where the chunks go.
        trained: what the task said of its work. Encoding it again gives the same bytes.
    """

    def __init__(self, assignment: Assignment, spool: Spool, trained: SpooledTraining) -> None:
        self.grid = Grid.of(trained.table)
        self.sizes: list[int] = []  # of the chunks that are encoded
        news, member = assignment.announcement, assignment.member
        self.attempt = trained.attempt
        self.seat: Seat = (news.run, news.round, member.worker, member.node, self.attempt)
        self._news = news
        self._spool = spool
        self._trained = trained
        self._digests: list[str] = []
        self._grown = asyncio.Event()
        self._stopped = False

    @property
    def is_small(self) -> bool:
        """Whether encoding takes no time worth speaking of."""
        return self.grid.bytes <= QUICK_BYTES

    def stop(self) -> None:
        """Give it up after the chunk that is being encoded."""
        self._stopped = True

    async def run(self, report: Callable[[float], None]) -> SpooledUpdate:
        """Encode all of it, in a thread if it is large.

        Args:
            report: told the share that is encoded, perhaps from that thread.

        Raises:
            PayloadTooLarge: it weighs more than the plan allows.
            OSError: the disk is full.
        """
        loop = asyncio.get_running_loop()

        def grew() -> None:
            report(len(self.sizes) / len(self.grid.spans))
            if not self.is_small:  # nobody follows
                loop.call_soon_threadsafe(self._grown.set)

        try:
            return await apart(self.grid.bytes, self._encode, grew)
        finally:
            self._grown.set()

    async def reached(self, index: int, encoded: asyncio.Task[SpooledUpdate]) -> None:
        """Return once a chunk is encoded.

        Args:
            index: its number.
            encoded: the task in which `run` runs; its error is raised here, too.
        """
        while len(self.sizes) <= index:
            if encoded.done():
                encoded.result()
            self._grown.clear()
            if len(self.sizes) <= index:
                await self._grown.wait()

    async def indices(self, encoded: asyncio.Task[SpooledUpdate]) -> AsyncGenerator[int]:
        """Each chunk's number, as soon as it is encoded."""
        for index in range(len(self.grid.spans)):
            await self.reached(index, encoded)
            yield index

    def _encode(self, grew: Callable[[], None]) -> SpooledUpdate:
        plan = self._news.plan
        coded, why = self._coded()
        framing = Framing(coded.name, coded.params)
        weight = 0
        with ExitStack() as files:
            # In place, and all of it at once: the upload reads what is encoded.
            chunks = os.open(self._spool.chunks, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            files.callback(os.close, chunks)
            feedback = self._feedback(framing)
            encode = files.enter_context(feedback).encode if feedback else framing.encode
            for span, values in read_vector(self._spool.delta, self.grid):
                if self._stopped:
                    raise Stopped("the round is over")
                data = encode(span, values)
                start, weight = weight, weight + len(data)
                if weight > plan.max_update_bytes:
                    raise PayloadTooLarge(
                        f"the update weighs more than the plan allows, {plan.limits.mb_per_worker:g} MB",
                        hint="raise limits.mb_per_worker, or choose a codec that compresses more",
                    )
                write_all(chunks, memoryview(data), start)
                self._digests.append(chunk_digest(data))
                self.sizes.append(len(data))
                grew()
            if feedback:
                feedback.save(self._spool.lost)
        run, round_, worker, node, attempt = self.seat
        manifest = UpdateManifest(
            run=run,
            round=round_,
            worker=worker,
            node=node,
            attempt=attempt,
            plan=self._news.plan_digest,
            base=self._news.base,
            codec=coded.name,
            chosen=why,
            num_examples=self._trained.num_examples,
            metrics=self._trained.metrics,
            chunks=self._digests,
            size_bytes=weight,
            table=None if self._news.base else self._trained.table,
        )
        update = SpooledUpdate(manifest=manifest, sizes=self.sizes, boot=boot_id())
        self._spool.save(update)
        return update

    def _coded(self) -> tuple[Named, str | None]:
        """The codec, and why, where the plan leaves it to us."""
        planned = up_codec(self._news.plan.codec.up, self._news.base)
        if planned.name != AUTO:
            return planned, None
        _, sample = next(read_vector(self._spool.delta, self.grid))
        choice = choose(sample)
        log.info("codec chosen: %s", choice.why, extra={"run": self._news.run, "round": self._news.round})
        return choice.codec, choice.why

    def _feedback(self, framing: Framing) -> Feedback | None:
        # Where the codec is chosen anew each time, one that needs none may follow one that does.
        if not framing.feedback and not self._spool.residual.exists():
            return None
        return Feedback(framing, self.grid, self._spool.residual, self._spool.losing)


def seat_of(manifest: UpdateManifest) -> Seat:
    """The names of an update's messages."""
    return manifest.run, manifest.round, manifest.worker, manifest.node, manifest.attempt

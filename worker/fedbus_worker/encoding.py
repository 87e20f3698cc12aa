"""A trained difference, chunk by chunk, as it is sent: encoded where it is asked for, and kept nowhere.

To encode it again gives the same bytes, so that a restart needs no more than the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from io import FileIO
from typing import Self

from fedbus.base.errors import PayloadTooLarge
from fedbus.bus.modelfile import read_span, scratch_of
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.auto import AUTO, choose
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing, up_codec
from fedbus.codec.grid import Grid, Span
from fedbus_schemas.messages import Announcement
from fedbus_schemas.plan import Named
from fedbus_schemas.update import UpdateManifest

from fedbus_worker.assignments import Assignment
from fedbus_worker.feedback import Feedback
from fedbus_worker.spool import Spool, SpooledUpdate

log = logging.getLogger(__name__)

Seat = tuple[str, int, str, str, str]  # run, round, worker, node, attempt: what names an update's messages


class UpdateDamaged(Exception):
    """What is on disk does not give the chunks any more that a manifest lists."""


class Encoding:
    """One attempt at a round: iterates over numbers and bytes of the chunks that were not stored yet.

    Args:
        assignment: what it is for.
        spool: where `delta` is, and where the manifest goes.
        trained: what the spool keeps of it.
    """

    def __init__(self, assignment: Assignment, spool: Spool, trained: SpooledUpdate) -> None:
        self.grid = Grid.of(trained.table)
        self.stored = spool.stored()
        news, member = assignment.announcement, assignment.member
        self.seat: Seat = (news.run, news.round, member.worker, member.node, trained.attempt)
        self._news = news
        self._spool = spool
        self._trained = trained
        # Before there is a manifest all is encoded, also what is stored: for its digests, and what is lost.
        again = set() if trained.manifest is None else self.stored
        self._spans = iter([span for span in self.grid.spans if span.index not in again])
        self._digests: list[str] = []
        self._weight = 0
        self._files = ExitStack()
        self._coding: _Coding | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        """The next chunk.

        Raises:
            PayloadTooLarge: it all weighs more than the plan allows.
            UpdateDamaged: the chunk is not the one that the manifest lists.
            OSError: the disk is full.
        """
        for span in self._spans:
            data = await apart(4 * span.count, self._encode, span)
            if span.index not in self.stored:
                return span.index, data
        raise StopAsyncIteration

    def finish(self) -> UpdateManifest:
        """All is encoded: write the manifest into the spool, if it is not there.

        Raises:
            OSError: the disk is full.
        """
        if self._trained.manifest is not None:
            return self._trained.manifest
        assert self._coding is not None
        if self._coding.feedback:
            self._coding.feedback.save(self._spool.lost)
        run, round_, worker, node, attempt = self.seat
        manifest = UpdateManifest(
            run=run,
            round=round_,
            worker=worker,
            node=node,
            attempt=attempt,
            plan=self._news.plan_digest,
            base=self._news.base,
            codec=self._coding.codec.name,
            chosen=self._coding.why,
            num_examples=self._trained.num_examples,
            metrics=self._trained.metrics,
            chunks=self._digests,
            size_bytes=self._weight,
            table=None if self._news.base else self._trained.table,
        )
        self._trained = self._trained.model_copy(update={"manifest": manifest})
        self._spool.save(self._trained)
        return manifest

    def _encode(self, span: Span) -> bytes:
        if self._coding is None:
            self._coding = self._files.enter_context(_Coding(self._news, self._spool, self.grid))
        data = self._coding.encode(span)
        digest = chunk_digest(data)
        if self._trained.manifest is not None:
            if digest != self._trained.manifest.chunks[span.index]:
                raise UpdateDamaged(f"chunk {span.index} is not what it was")
            return data
        plan = self._news.plan
        self._digests.append(digest)
        self._weight += len(data)
        if self._weight > plan.max_update_bytes:
            raise PayloadTooLarge(
                f"the update weighs more than the plan allows, {plan.limits.mb_per_worker:g} MB",
                hint="raise limits.mb_per_worker, or choose a codec that compresses more",
            )
        return data


class _Coding:
    """The files and the codec of an encoding: opened with its first chunk, by the thread that encodes it."""

    def __init__(self, news: Announcement, spool: Spool, grid: Grid) -> None:
        self._values = scratch_of(grid)
        with ExitStack() as files:
            self._delta = files.enter_context(FileIO(spool.delta))
            self.codec, self.why = self._coded(news, grid)
            framing = Framing(self.codec.name, self.codec.params)
            self._encode: Callable[[Span, Vector], bytes] = framing.encode
            self.feedback: Feedback | None = None
            # Where the codec is chosen anew each time, one that needs none may follow one that does.
            if framing.feedback or spool.residual.exists():
                opened = Feedback(framing, grid, spool.residual, spool.losing)
                self.feedback = files.enter_context(opened)
                self._encode = opened.encode
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def encode(self, span: Span) -> bytes:
        """The bytes of one chunk."""
        values = self._values[: span.count]
        read_span(self._delta, span, values)
        return self._encode(span, values)

    def _coded(self, news: Announcement, grid: Grid) -> tuple[Named, str | None]:
        """The codec, and why, where the plan leaves it to us."""
        planned = up_codec(news.plan.codec.up, news.base)
        if planned.name != AUTO:
            return planned, None
        first = grid.spans[0]
        sample = self._values[: first.count]
        read_span(self._delta, first, sample)
        choice = choose(sample)
        log.info("codec chosen: %s", choice.why, extra={"run": news.run, "round": news.round})
        return choice.codec, choice.why

"""A worker that does what a test says: it joins as a real one does, and sends any update, right or wrong.

The functions below it are ready-made wrong updates; each takes an honest update and returns the lie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fedbus.base.clock import random_token
from fedbus.base.errors import BusUnavailable, NotAcked, StreamMissing
from fedbus.bus import Bus, Message
from fedbus.bus.store import Publisher, get, get_last
from fedbus.codec import Vector, codecs
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing, up_codec
from fedbus.codec.grid import Grid
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement, Beat, Capabilities, InboxNotices, Notice
from fedbus_schemas.update import TensorSpec, UpdateManifest

BEAT_S = 0.5


@dataclass(frozen=True)
class Update:
    """An update as it will be sent: its manifest's bytes, and its chunks by index."""

    manifest: UpdateManifest
    chunks: dict[int, bytes]
    seat: tuple[str, int, str, str, str]
    packed: bytes = b""

    def saying(self, **changes: Any) -> Update:
        """The same, its manifest saying something else. It is still stored under the true subject."""
        return replace(self, manifest=self.manifest.model_copy(update=changes))

    def with_chunks(self, *chunks: bytes) -> Update:
        """Other chunks, listed by their true digests and sizes."""
        listed = self.saying(chunks=[chunk_digest(c) for c in chunks], size_bytes=sum(map(len, chunks)))
        return replace(listed, chunks=dict(enumerate(chunks)))

    def subject(self, leaf: int | str) -> str:
        run, number, worker, node, attempt = self.seat
        return subjects.update(run, number, worker, node, attempt, leaf)


Answer = Callable[["Scripted", Announcement], Awaitable[None]]


class Scripted:
    """Beats, hears, makes the first model of zeros, and answers every other round as it is told.

    Args:
        bus: the connection, as the worker.
        answer: called once for each open round after round 0 that it has a seat in; none: stay silent.
        labels: what plans may require.
        tasks: what it says that it can train.
    """

    def __init__(
        self,
        bus: Bus,
        answer: Answer | None = None,
        labels: dict[str, str] | None = None,
        tasks: tuple[str, ...] = ("noop",),
    ) -> None:
        self.name = bus.credentials.name
        self.bus = bus
        self.answer = answer
        self.news: dict[tuple[str, int], Announcement] = {}
        self.sent: list[tuple[str, int]] = []
        self._labels = labels or {}
        self._tasks = list(tasks)
        self._leaving = False
        self._publisher = Publisher(bus)
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Join and answer until cancelled; leave without a word."""
        beating = asyncio.create_task(self._beat_on())
        try:
            await self.bus.subscribe(subjects.ALL_ANNOUNCEMENTS, self._hear)
            await self.bus.on_up(self._read_open)
            answered: set[tuple[str, int]] = set()
            while True:
                self._heard.clear()
                for key in [key for key in self.news if key not in answered]:
                    answered.add(key)
                    await self._answer(self.news[key])
                await self._heard.wait()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    def make(self, news: Announcement, values: Vector, weight: int = 1, **metrics: float) -> Update:
        """An honest update of one tensor `w`; its values are a delta, or a first model."""
        table = [TensorSpec(name="w", shape=values.shape, dtype="float32")]
        coded = up_codec(news.plan.codec.up, news.base)
        framing = Framing(coded.name, coded.params)
        spans = Grid.of(table).spans
        chunks = [framing.encode(span, values[span.offset : span.end]) for span in spans]
        manifest = UpdateManifest(
            run=news.run,
            round=news.round,
            worker=self.name,
            attempt=random_token(),
            plan=news.plan_digest,
            base=news.base,
            codec=coded.name,
            num_examples=weight,
            metrics=metrics,
            chunks=[chunk_digest(chunk) for chunk in chunks],
            size_bytes=sum(map(len, chunks)),
            table=None if news.base else table,
        )
        seat = (news.run, news.round, self.name, "0", manifest.attempt)
        return Update(manifest, dict(enumerate(chunks)), seat)

    async def send(self, update: Update, leaves: Iterable[int | str] | None = None) -> None:
        """Store chunks, then the manifest; or only the leaves given, in that order."""
        chosen: list[int | str] = [*update.chunks, "manifest"] if leaves is None else list(leaves)
        for leaf in chosen:
            whole = update.packed or update.manifest.pack()
            data = whole if leaf == "manifest" else update.chunks[int(leaf)]
            await self._publisher.put(update.subject(leaf), data)
        self.sent.append((update.manifest.run, update.manifest.round))

    async def beat(self, *, leaving: bool = False) -> None:
        """Say that it is there, or that it leaves."""
        can = Capabilities(tasks=self._tasks, codecs=codecs.names())
        self._leaving = self._leaving or leaving
        beat = Beat(
            worker=self.name,
            at=1.0,
            incarnation="1",
            capabilities=can,
            labels=self._labels,
            leaving=self._leaving,
        )
        await self.bus.publish(subjects.beat(self.name), beat.model_dump_json().encode())

    async def notices(self) -> list[Notice]:
        """What stands in its inbox now."""
        with suppress(StreamMissing):
            found = await get(self.bus, subjects.INBOX, subjects.inbox(self.name))
            return InboxNotices.model_validate_json(found.data).notices
        return []

    async def _answer(self, news: Announcement) -> None:
        if news.base is None:
            await self.send(self.make(news, np.zeros(news.plan.train.get("elements", 25_000), np.float32)))
        elif self.answer is not None:
            await self.answer(self, news)

    def _hear(self, message: Message) -> None:
        if not message.data:
            return
        news = Announcement.model_validate_json(message.data)
        if news.state == "open" and self.name in [member.worker for member in news.members]:
            self.news[news.run, news.round] = news
            self._heard.set()

    async def _read_open(self) -> None:
        for message in await get_last(self.bus, subjects.ANNOUNCE, subjects.ALL_ANNOUNCEMENTS):
            self._hear(message)

    async def _beat_on(self) -> None:
        while True:
            with suppress(BusUnavailable, NotAcked):
                await self.beat()
                await self._read_open()
            await asyncio.sleep(BEAT_S)
            await self.bus.wait_up()


def honest(values: Vector, weight: int = 1) -> Answer:
    """Answer every round with the same delta."""

    async def answer(worker: Scripted, news: Announcement) -> None:
        await worker.send(worker.make(news, values, weight))

    return answer


def lying(values: Vector, lie: Callable[[Update], Update]) -> Answer:
    """Answer every round with one of the lies below."""

    async def answer(worker: Scripted, news: Announcement) -> None:
        await worker.send(lie(worker.make(news, values)))

    return answer

"""The agent: the half of a worker that talks. It hears announcements, does its part, and beats.

It only dials out. What it hears is a hint: it reads what is open after every connect
and at every beat, so nothing depends on a message that arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import threading
from pathlib import Path
from typing import NamedTuple

from fedbus.base.clock import Clock, SystemClock, random_token
from fedbus.base.errors import BusError, BusUnavailable, ChildDied, FedbusError, NotAcked, StreamMissing
from fedbus.bus import Bus, Message
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.store import get, get_last
from fedbus.codec import codecs
from fedbus.rounds.roster import BEAT_S
from fedbus.runtime.child import Trainer
from fedbus.tasks.load import installed
from fedbus.telemetry.model import SpanRef
from fedbus.telemetry.spans import OpenSpan
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.base import Wire
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import (
    Beat,
    Capabilities,
    InboxNotices,
    Phase,
    Progress,
)
from pydantic import ValidationError

from fedbus_worker.assignments import Announced, Assignment
from fedbus_worker.work import Work

log = logging.getLogger(__name__)

PROGRESS_S = 0.5  # at most two progress messages a second
ACK_S = 1.0  # to hear that an update is stored which counts already


class Told(NamedTuple):
    """What the worker last said of its work; made into a message only when that is sent."""

    assignment: Assignment
    phase: Phase
    fraction: float
    at: float
    failed: str | None = None

    def message(self, worker: str) -> Progress:
        """As it is sent."""
        ref = self.assignment.ref
        return Progress(
            worker=worker,
            node=self.assignment.member.node,
            run=ref.run,
            round=ref.number,
            phase=self.phase,
            fraction=self.fraction,
            at=self.at,
            failed=self.failed,
        )


class Agent:
    """One worker's agent.

    Args:
        bus: the connection, as the worker.
        trainer: its child.
        state: its locked folder.
        models: folder of models, which workers of this host may share; one in `state` by default.
        tasks: tasks beside those installed, as `module:Class`.
        data: the site's own data folder.
        labels: what plans may require.
        clock: the machine's by default.
    """

    def __init__(
        self,
        bus: Bus,
        trainer: Trainer,
        state: Path,
        *,
        models: Path | None = None,
        tasks: tuple[str, ...] = (),
        data: Path | None = None,
        labels: dict[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = bus.credentials.name
        self._bus = bus
        self._clock = clock or SystemClock()
        self._labels = labels or {}
        self._trainer = trainer
        self._models = ModelCache(bus, models or state / "models")
        self._work = Work(bus, trainer, state, self._models, data, self._labels)
        self._announced = Announced(self.name)
        self._incarnation = random_token()
        self._capabilities = _capabilities(tasks)
        self._current: tuple[Assignment, asyncio.Task[None]] | None = None
        self._progress: Told | None = None
        self._read = False  # what is open was read at least once
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._tracer = Tracer(bus, "worker", self._clock)

    async def run(self) -> None:
        """Join and work until cancelled; then say goodbye."""
        beating = asyncio.create_task(self._beat_on())
        telling = asyncio.create_task(self._tell_progress())
        try:
            self._tracer.start()
            await self._bus.subscribe(subjects.ALL_ANNOUNCEMENTS, self._hear)
            await self._bus.subscribe(subjects.inbox(self.name), self._hear_inbox)
            await self._bus.on_up(self._read_open)
            while True:
                await self._follow()
                await self._wake.wait()
                self._wake.clear()
        finally:
            await self._stop_current("the worker ends")
            for task in (beating, telling):
                task.cancel()
            await asyncio.gather(beating, telling, return_exceptions=True)
            with contextlib.suppress(BusError):
                await self._send(subjects.beat(self.name), self._beat(leaving=True))
                await self._bus.flush()
            await self._tracer.close()
            self._models.close()

    # What is heard

    def _hear(self, message: Message) -> None:
        try:
            announcement = self._announced.read(message.data)
        except ValidationError as error:
            log.warning("unreadable announcement ignored (%d errors)", error.error_count())
            return
        if self._announced.hear(announcement):
            self._wake.set()

    def _hear_inbox(self, message: Message) -> None:
        try:
            inbox = InboxNotices.model_validate_json(message.data)
        except ValidationError:
            return
        for notice in inbox.notices:
            ref = RoundRef(notice.run, notice.round)
            # An inbox also tells of earlier rounds, and of attempts that another process of our name made.
            if not self._announced.has_given_up(ref) and self._work.has_attempt(ref, notice.attempt):
                about = {"run": ref.run, "round": ref.number, "code": notice.code}
                # Two members make the first model, so that one may fail: the second is no trouble.
                level = logging.INFO if notice.code == "not-needed" else logging.WARNING
                log.log(level, "our update was refused: %s", notice.reason, extra=about)
                self._announced.give_up(ref)
                self._wake.set()

    async def _read_open(self) -> None:
        """Read what is open and our inbox: after a connect, and at each beat, in case a message was lost."""
        stored = await get_last(self._bus, subjects.ANNOUNCE, subjects.ALL_ANNOUNCEMENTS)
        for message in stored:
            self._hear(message)
        self._announced.forget([subjects.parse_announce(each.headers["Nats-Subject"]) for each in stored])
        with contextlib.suppress(StreamMissing):
            self._hear_inbox(await get(self._bus, subjects.INBOX, subjects.inbox(self.name)))
        self._read = True
        self._wake.set()

    # What is done

    async def _follow(self) -> None:
        """Stop what is over, start what is open."""
        for ref in self._work.spooled():
            # A closed round's announcement goes after a day: a run that nobody announces is over too.
            gone = self._read and not self._announced.knows(ref.run)
            if gone or self._announced.is_over(ref):
                if self._current and self._current[0].ref == ref:
                    await self._stop_current()
                self._say_outcome(ref)
                self._work.settle(ref, self._announced.counted(ref))
        await self._work.forget_runs(self._is_run_over)
        if self._current and self._is_over(self._current[0]):
            await self._stop_current()
        if self._current is None:
            todo = [a for a in self._announced.open() if not self._work.is_sent(a)]
            to_score = self._announced.to_score(self._clock.now())
            todo += [a for a in to_score if self._work.is_score_wanted(a)]
            if todo:
                self._current = (todo[0], asyncio.create_task(self._do(todo[0])))

    def _is_over(self, assignment: Assignment) -> bool:
        if self._announced.is_replaced(assignment.announcement):
            return True
        return not assignment.only_scores and self._announced.is_over(assignment.ref)

    def _is_run_over(self, run: str) -> bool:
        return self._announced.is_run_over(run) or (self._read and not self._announced.knows(run))

    def _say_outcome(self, ref: RoundRef) -> None:
        counted = self._announced.counted(ref)
        said = {True: "our update counts", False: "our update does not count", None: "it ended without us"}[
            counted
        ]
        if ref.number == 0:
            made = self._announced.has_model(ref)
            said = "the first model is made" if made else "it ended without a model"
        # That it counts is the rule, and what `update sent` let expect.
        level = logging.DEBUG if counted and ref.number else logging.INFO
        log.log(level, "round is over: %s", said, extra={"run": ref.run, "round": ref.number})

    async def _do(self, assignment: Assignment) -> None:
        ref = assignment.ref
        about = {"run": ref.run, "round": ref.number}
        log.info("round begins", extra=about)
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def report(phase: Phase, fraction: float) -> None:
            self._progress = Told(assignment, phase, min(1.0, max(0.0, fraction)), self._clock.now())
            if threading.get_ident() == thread:
                self._news.set()
            else:
                loop.call_soon_threadsafe(self._news.set)

        try:
            await self._trainer.begin(ref.run)
            if assignment.only_scores:
                with self._traced("evaluate", assignment):
                    score = await self._work.score(assignment, report)
                log.info("last model scored: %s", score.failed or "sent", extra=about)
                await self._send_progress()  # the evaluator looks for the score at once
            else:
                with self._traced("task", assignment):
                    sent = await self._work.perform(assignment, report)
                log.info("update sent, %.3f MB", sent.size_bytes / 1e6, extra=about)
            self._progress = None
        except (BusUnavailable, NotAcked) as error:
            log.warning("the broker did not do it, trying again: %s", error, extra=about)
            await self._bus.wait_up()
        except FedbusError as error:
            # The last words of a child that died stand in the log already.
            self._give_up(assignment, error.message, None if isinstance(error, ChildDied) else error.hint)
        except Exception as error:  # a full disk, a bug: the planner is told, and the worker lives on
            log.exception("round failed", extra=about)
            self._give_up(assignment, f"{type(error).__name__}: {error}", None)
        finally:
            self._current = None
            self._wake.set()
            self._tracer.flush_soon()

    def _traced(self, name: str, assignment: Assignment) -> OpenSpan:
        ref, parent = assignment.ref, SpanRef.parse(assignment.announcement.traceparent)
        seat = {"worker": self.name, "node": assignment.member.node}
        return self._tracer.span(name, parent, **seat, run=ref.run, round=ref.number)

    def _give_up(self, assignment: Assignment, reason: str, details: str | None) -> None:
        ref = assignment.ref
        log.error("round given up: %s", reason, extra={"run": ref.run, "round": ref.number})
        if details:
            log.error("%s", details)
        self._announced.give_up(ref, scoring=assignment.only_scores)
        if assignment.only_scores:
            self._progress = None
            return
        self._progress = Told(assignment, "train", 0.0, self._clock.now(), failed=reason[:2000])
        self._news.set()

    async def _stop_current(self, why: str = "the round is over") -> None:
        if self._current is None:
            return
        assignment, task = self._current
        if self._announced.counted(assignment.ref):
            # Others heard of our manifest before we had its ack, which comes any moment.
            await asyncio.wait([task], timeout=ACK_S)
        if task.cancel(why):
            about = {"run": assignment.ref.run, "round": assignment.ref.number}
            log.info("stopped: %s", why, extra=about)
        await asyncio.gather(task, return_exceptions=True)
        self._current = self._progress = None

    # What is told

    async def _tell_progress(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._send_progress()
            await asyncio.sleep(PROGRESS_S)

    async def _send_progress(self) -> None:
        if self._progress is not None:
            with contextlib.suppress(BusError):
                await self._send(subjects.progress(self.name), self._progress.message(self.name))

    async def _beat_on(self) -> None:
        """Beat, repeat the last progress, and read what is open, for as long as the worker lives."""
        while True:
            try:
                await self._send(subjects.beat(self.name), self._beat())
                # Core messages may be lost; above all a failure must be heard.
                await self._send_progress()
                await self._read_open()
            except (BusUnavailable, NotAcked):
                pass  # the next beat
            except Exception:
                # Whatever it is, a worker that stops beating without a word would be worse.
                log.exception("a beat failed")
            await asyncio.sleep(BEAT_S)
            await self._bus.wait_up()

    def _beat(self, *, leaving: bool = False) -> Beat:
        return Beat(
            worker=self.name,
            at=self._clock.now(),
            incarnation=self._incarnation,
            capabilities=self._capabilities,
            labels=self._labels,
            leaving=leaving,
        )

    async def _send(self, subject: str, message: Wire) -> None:
        await self._bus.publish(subject, message.model_dump_json().encode())


def _capabilities(tasks: tuple[str, ...]) -> Capabilities:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Capabilities(
        tasks=sorted({*installed(), *tasks}),
        codecs=codecs.names(),
        cpus=os.cpu_count() or 1,
        memory_mb=pages * page // 1_000_000,
        python=platform.python_version(),
        version=importlib.metadata.version("fedbus"),
    )

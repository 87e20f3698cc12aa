"""The aggregator's shell: follows manifests and the log, verifies, accepts, folds, publishes.

Where several run, one of them works, which holds a lease; the others follow the log and stand by.
What may count is decided in `fedbus.rounds.collecting` and `fedbus.rounds.fold`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fedbus.base.clock import Clock, SystemClock
from fedbus.base.errors import BusError, RemoteContractError
from fedbus.base.setbacks import Setbacks
from fedbus.bus import Bus, Message
from fedbus.bus.lease import Lease
from fedbus.bus.log import RESYNC_S, RoundLog
from fedbus.bus.micro import serve
from fedbus.bus.modelcache import model_cache
from fedbus.bus.runs import Runs
from fedbus.bus.store import last_seq, persist
from fedbus.bus.updates import list_updates
from fedbus.rounds.close import Attempt
from fedbus.rounds.collecting import VERDICT_S, Refusal, may_wait
from fedbus.rounds.stored import StoredManifests
from fedbus.telemetry.ofround import root_of
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Accepted, AcceptedUpdate, Aggregated, Entry, Rejected, Voided

from fedbus_aggregator.folding import Folding
from fedbus_aggregator.publishing import residuals_of
from fedbus_aggregator.reading import Corrupted
from fedbus_aggregator.replaying import Replaying

log = logging.getLogger(__name__)

UNSURE_S = 2 * RESYNC_S  # the log is behind for less


class Aggregator:
    """Serves every round that is open or closing.

    Args:
        bus: the connection.
        folder: where the stack keeps its files; the latest models are kept here.
        clock: the machine's by default.
    """

    def __init__(self, bus: Bus, folder: Path | None = None, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._runs = Runs(bus)
        self._log = RoundLog(bus, self._changed)
        self._folder = folder
        self._foldings: dict[str, Folding] = {}
        self._stored: dict[RoundRef, StoredManifests] = {}
        self._unlisted: set[RoundRef] = set()
        self._listed_at = 0.0
        # From then on all that is stored of a round is heard, from its opening on.
        self._unsure_until = float("inf")
        self._due: dict[RoundRef, float] = {}  # when verdicts are appended that wait for others
        self._setbacks: Setbacks[RoundRef] = Setbacks("round", log)
        self._wake = asyncio.Event()
        self._lease = Lease(bus, "aggregator", self._wake.set, self._clock)
        self._tracer = Tracer(bus, "aggregator", self._clock)
        self._replaying = Replaying(bus)

    async def run(self) -> None:
        """Take up what is open, then hear and act until cancelled."""
        with model_cache(self._bus, self._folder) as self._models:
            await self._run()

    async def _run(self) -> None:
        try:
            self._tracer.start()
            await self._lease.start()
            await self._log.start(await persist(self._bus, self._first_open))
            await self._bus.subscribe(subjects.MANIFEST_COPIES, self._manifest)
            await self._bus.on_up(self._reconnected)
            await serve(self._bus, "aggregator", {"replay": self._replaying.answer})
            while True:
                now = self._clock.monotonic()
                for ref in sorted(self._log.rounds):
                    if self._setbacks.ready(ref, now):
                        await self._try(ref)
                self._lease.want(any(r.state in ("open", "closing") for r in self._log.rounds.values()))
                until = min([self._setbacks.next_try(now + RESYNC_S), *self._due.values()])
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.01, until - self._clock.monotonic())):
                        await self._wake.wait()
                self._wake.clear()
                if self._clock.monotonic() > self._listed_at + RESYNC_S:
                    await self._list_anew()  # a copy may have been lost without a broken connection
        finally:
            self._replaying.close()
            await self._lease.close()
            await self._log.close()
            await self._tracer.close()

    async def _first_open(self) -> int:
        """Where to read the log from; what was killed may have left files of runs that are over, which go."""
        residuals = residuals_of(self._models)
        over = residuals.runs()  # before the records are read: another aggregator may serve a new run by then
        first = await last_seq(self._bus, subjects.ROUNDS) + 1
        for name in await self._runs.names():
            # A record that cannot be read stops no other run.
            try:
                record, _ = await self._runs.get(name)
            except RemoteContractError:
                over.discard(name)
                continue
            if not record.done:
                over.discard(name)
                first = min(first, record.open_seq)
        for name in over:
            residuals.forget(name)
        return first

    def _changed(self, ref: RoundRef) -> None:
        round_ = self._log.rounds[ref]
        just_opened = round_.state == "open" and round_.last_seq == round_.first_seq
        if just_opened and self._clock.monotonic() > self._unsure_until:
            # No member knows of it yet, and what they store will be heard: it need not be listed.
            self._stored.setdefault(ref, StoredManifests())
        self._wake.set()

    def _manifest(self, message: Message) -> None:
        _, _, run, number, worker, node, attempt = message.subject.split(".")
        # Workers choose these tokens. A round that is not known yet is listed when it is.
        ref = RoundRef(run, int(number)) if number.isascii() and number.isdigit() else None
        if ref not in self._log.rounds:
            self._be_unsure()
        elif ref in self._stored and self._stored[ref].note((worker, node, attempt)):
            self._wake.set()

    def _be_unsure(self) -> None:
        """List what is stored of each round that is heard of now: some of it may have been missed."""
        self._unsure_until = self._clock.monotonic() + UNSURE_S

    async def _reconnected(self) -> None:
        self._be_unsure()
        await self._list_anew()

    async def _list_anew(self) -> None:
        self._listed_at = self._clock.monotonic()
        self._unlisted = {ref for ref, round_ in self._log.rounds.items() if not round_.ended}
        self._wake.set()

    async def _try(self, ref: RoundRef) -> None:
        """Serve one round; what goes wrong with it is told once, tried again later, and stops no other."""
        try:
            await self._serve(ref)
        except Exception as error:
            self._due.pop(ref, None)
            self._setbacks.put_off(ref, error, self._clock.monotonic(), run=ref.run, round=ref.number)
        else:
            self._setbacks.clear(ref)

    async def _serve(self, ref: RoundRef) -> None:
        """Bring one round as far as it can go now."""
        round_ = self._log.rounds.get(ref)
        if round_ is None or round_.opened is None or round_.aggregated or round_.ended:
            self._stored.pop(ref, None)
            self._due.pop(ref, None)
            if round_ is not None and round_.ended:
                self._forget(ref)
            return
        if not self._lease.held:
            self._due.pop(ref, None)
            return  # another one does it
        folding = await self._folding(ref)
        await folding.begin(ref, round_)
        if ref not in self._stored or ref in self._unlisted:
            stored = self._stored.setdefault(ref, StoredManifests())
            members = [member.worker for member in round_.members]
            for subject in await list_updates(self._bus, ref, members, "manifest"):
                stored.note(subjects.parse_update(subject)[2:5])
            self._unlisted.discard(ref)
        await self._judge(ref, folding)
        if round_.closing and self._lease.held:
            await self._finish(ref, folding)

    async def _judge(self, ref: RoundRef, folding: Folding) -> None:
        """Verify what is stored and say what counts: in as few entries as can be without anybody waiting."""
        round_, stored = self._log.rounds[ref], self._stored[ref]
        while self._lease.held:
            verified = folding.verified(round_)
            while len(verified) < folding.batch and (attempt := stored.next(round_, verified)):
                verdict = await self._verdict(ref, attempt, folding)
                if isinstance(verdict, Refusal):
                    await self._reject(ref, attempt, verdict)
                else:
                    verified[attempt] = verdict
            fresh = folding.verified(round_)  # another aggregator may have accepted some meanwhile
            if fresh and not self._may_wait(ref, fresh, folding.batch):
                await self._append(ref, Accepted(at=self._clock.now(), updates=list(fresh.values())))
                await self._add(ref, folding)
            elif len(fresh) == len(verified):
                return

    def _may_wait(self, ref: RoundRef, verified: Collection[Attempt], most: int) -> bool:
        """Whether what is verified waits for more that is about to come; not for long."""
        seats = {(worker, node) for worker, node, _ in verified}
        if len(verified) < most and may_wait(self._log.rounds[ref], seats):
            now = self._clock.monotonic()
            if now < self._due.setdefault(ref, now + VERDICT_S):
                return True
        self._due.pop(ref, None)
        return False

    async def _verdict(self, ref: RoundRef, attempt: Attempt, folding: Folding) -> AcceptedUpdate | Refusal:
        """Judge one update; whatever a worker managed to send, it is refused, and never stops the round."""
        round_ = self._log.rounds[ref]
        # A peer names its nodes and attempts itself; what is said of them is bounded where spans are cleaned.
        about = dict(zip(("worker", "node", "attempt"), attempt, strict=True))
        with self._tracer.span("verify", root_of(round_), **about) as span:
            try:
                verdict = await folding.verify(ref, attempt, round_)
            except BusError:
                raise
            except Exception as error:
                known = {"action": "verify", "run": ref.run, "round": ref.number, "worker": attempt[0]}
                log.exception("an update could not be read", extra=known)
                verdict = Refusal("unreadable", f"{type(error).__name__}: {error}"[:500])
            if isinstance(verdict, Refusal):
                span.attributes["code"] = verdict.code
                span.fail(verdict.reason)
            else:
                span.attributes |= {"bytes": verdict.bytes, "examples": int(verdict.weight)}
        return verdict

    async def _add(self, ref: RoundRef, folding: Folding) -> None:
        round_ = self._log.rounds[ref]
        count = folding.to_add(round_)
        try:
            with self._tracer.span("fold", root_of(round_) if count else None, updates=count):
                await folding.add_accepted(ref, round_)
        except Corrupted as error:
            if await self._void(ref, error):
                await self._add(ref, folding)

    async def _void(self, ref: RoundRef, error: Corrupted) -> bool:
        """Take an update that changed in storage out of what counts.

        Returns:
            Whether the fold shall go on without it.
        """
        round_, update, reason = self._log.rounds[ref], error.update, error.refusal.reason
        if round_.aggregated or round_.ended:
            return False  # it may be gone by now, and is not needed any more
        if round_.closing is None:
            log.error("an accepted update changed in storage: %s", reason, extra={"worker": update.worker})
            return False  # `voided` belongs after the cut-off; it is met again there
        entry = Voided(
            at=self._clock.now(),
            worker=update.worker,
            node=update.node,
            chunk=error.refusal.chunk,
            reason=reason,
        )
        await self._append(ref, entry)
        return True

    async def _finish(self, ref: RoundRef, folding: Folding) -> None:
        await self._add(ref, folding)
        round_ = self._log.rounds[ref]
        if len(round_.counted) < round_.quorum or round_.aggregated or round_.ended:
            return  # too few are left: the planner aborts the round
        try:
            with self._tracer.span("publish-model", root_of(round_)) as span:
                digest, size = await folding.publish(ref, round_)
                span.attributes["bytes"] = size
        except Corrupted as error:
            if await self._void(ref, error):
                await self._finish(ref, folding)
            return
        self._tracer.flush_soon()
        weight = sum(update.weight for update in round_.counted)
        await self._append(ref, Aggregated(at=self._clock.now(), model=digest, bytes=size, weight=weight))

    async def _reject(self, ref: RoundRef, attempt: Attempt, refusal: Refusal) -> None:
        worker, node, number = attempt
        entry = Rejected(
            at=self._clock.now(),
            worker=worker,
            node=node,
            attempt=number,
            code=refusal.code,
            reason=refusal.reason,
        )
        await self._append(ref, entry)

    async def _append(self, ref: RoundRef, entry: Entry) -> None:
        if await self._log.append(ref, "aggregator", entry):
            names = [u.worker for u in entry.updates] if isinstance(entry, Accepted) else []
            said = ", ".join(names) or getattr(entry, "reason", "")
            about = {"action": entry.kind, "run": ref.run, "round": ref.number}
            log.info("%s %s", entry.kind, said, extra=about)

    async def _folding(self, ref: RoundRef) -> Folding:
        if ref.run not in self._foldings:
            record, _ = await self._runs.get(ref.run)
            self._foldings[ref.run] = Folding(self._bus, self._models, record.plan)
        return self._foldings[ref.run]

    def _forget(self, ref: RoundRef) -> None:
        """Free what an ended round took; the sum stays for the run's next round."""
        folding = self._foldings.get(ref.run)
        last = folding is not None and folding.is_last(ref.number, self._log.rounds[ref])
        if last:
            self._foldings.pop(ref.run).end(ref.run)
        self._log.forget(ref.run, ref.number + 1 if last else ref.number)
        self._setbacks.keep(self._log.rounds)

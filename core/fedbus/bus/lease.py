"""A lease that ends by itself: which of several instances of a service works just now.

It saves work, and guards nothing: two that work at once must come to the same result.
The stream forgets the lease 2 s after it was last renewed, which is how a holder that
hangs is noticed. One that died is noticed sooner: the broker says at once that nobody
listens where it listened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from fedbus_schemas import subjects
from fedbus_schemas.messages import LeaseHolder

from fedbus.base.clock import Clock, random_token
from fedbus.base.errors import BusError, BusUnavailable, NotAcked
from fedbus.bus.connection import Bus, Subscription
from fedbus.bus.provision import LEASE_TTL_S
from fedbus.bus.store import WRONG_LAST, JetStreamError, leader_get, put

log = logging.getLogger(__name__)

RENEW_S = LEASE_TTL_S / 3
_AGAIN_S = 0.02  # until it is tried again under what was read just now


class Lease:
    """One instance's wish for the lease of its service. While it wants nothing, it costs nothing.

    Args:
        bus: the connection.
        service: whose lease, such as `aggregator`.
        on_held: called when this instance becomes the holder.
        clock: of the waits.
    """

    def __init__(self, bus: Bus, service: str, on_held: Callable[[], None], clock: Clock) -> None:
        self._bus = bus
        self._service = service
        self._on_held = on_held
        self._clock = clock
        place = f"process {os.getpid()} on {socket.gethostname()}"
        self._me = LeaseHolder(token=random_token(), place=place)
        self._wanted = asyncio.Event()
        self._expected = 0  # sequence of the lease that we may write over; 0: there is none
        self._until = 0.0
        self._holder: LeaseHolder | None = None  # the last one that was told
        self._trouble = ""
        self._listening: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether this instance may work now. Over before the stream forgets the lease."""
        return self._clock.monotonic() < self._until

    def want(self, wanted: bool) -> None:
        """Say whether there is work. A lease that is wanted no more is not renewed."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def start(self) -> None:
        """Begin to take, renew or wait for the lease whenever it is wanted."""
        # Nothing is ever said there. That somebody listens is what others want to know.
        subject = subjects.alive(self._service, self._me.token)
        self._listening = await self._bus.subscribe(subject, lambda _: None)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Give it up; who stands by takes it at its next look."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._listening:
            await self._bus.unsubscribe(self._listening)
        self._until = 0.0

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(await self._try())

    async def _try(self) -> float:
        """One turn; whatever goes wrong is told once, and tried again."""
        try:
            pause = await self._turn()
        except BusError as error:
            if self._bus.connected:  # else the connection has told it
                self._complain(str(error))
            await self._bus.wait_up()
        except Exception as error:
            self._complain(f"{type(error).__name__}: {error}")
        else:
            self._trouble = ""
            return pause
        return RENEW_S

    async def _turn(self) -> float:
        """Take or renew what is free or ours; returns the seconds until the next turn."""
        before, asked = self.held, self._clock.monotonic()
        subject = subjects.lease(self._service)
        try:
            data = self._me.model_dump_json().encode()
            self._expected = await put(self._bus, subject, data, expected=self._expected)
        except JetStreamError as error:
            if error.err_code != WRONG_LAST:
                raise
        else:
            self._until = asked + LEASE_TTL_S
            self._tell(self._me)
            if not before:
                self._on_held()
            return RENEW_S
        self._until = 0.0
        found = await leader_get(self._bus, subjects.LEASES, {"last_by_subj": subject})
        if found is None:
            self._expected = 0
            return _AGAIN_S
        holder = LeaseHolder.model_validate_json(found[2])
        # Ours may have been stored though nobody said so. Another's is written over where it is gone.
        free = holder.token == self._me.token or await self._is_gone(holder)
        self._expected = found[0] if free else 0
        return _AGAIN_S

    async def _is_gone(self, holder: LeaseHolder) -> bool:
        """Whether the holder's connection has ended; takes a while where it has not."""
        self._tell(holder)
        try:
            # Nobody answers it: the broker does, and at once, where nobody listens.
            await self._bus.request(subjects.alive(self._service, holder.token), timeout_s=RENEW_S)
        except NotAcked:
            return False
        except BusUnavailable:
            return self._bus.connected  # else it is our own connection that broke
        return False

    def _tell(self, holder: LeaseHolder) -> None:
        before, self._holder = self._holder, holder
        if before is not None and before.token == holder.token:
            return
        about = {"action": "lease", "holder": holder.place}
        if holder is not self._me:
            log.info("standing by: %s is the %s that works", holder.place, self._service, extra=about)
        elif before is not None:
            log.info("took over from the %s of %s", self._service, before.place, extra=about)
        else:
            log.info("this %s works now", self._service, extra=about)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("the lease cannot be had: %s", trouble, extra={"action": "lease"})
        self._trouble = trouble

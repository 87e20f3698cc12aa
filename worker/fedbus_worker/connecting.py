"""A worker's connection: how long its first one may take, and what is said while there is none later on."""

from __future__ import annotations

import asyncio
import logging

from fedbus.base.errors import AuthRefused, BusUnavailable
from fedbus.bus import Bus, Credentials

log = logging.getLogger(__name__)

# A broker that starts, or reads its accounts anew, refuses for a moment. So often in a row is an answer.
REFUSALS = 30
PAUSE_S = 1.0
REMIND_S = 60.0


async def connect(credentials: Credentials, refusals: int = REFUSALS, pause_s: float = PAUSE_S) -> Bus:
    """Connect for the first time. An absent broker is waited for as long as it takes.

    Args:
        credentials: the worker's.
        refusals: how often in a row the broker may refuse them.
        pause_s: between two tries.

    Raises:
        AuthRefused: it refused them so often.
    """
    refused = 0
    while True:
        try:
            # It says itself why a broker is not there, once in each of these minutes.
            return await Bus.connect(credentials, wait_s=REMIND_S)
        except BusUnavailable:
            refused = 0
        except AuthRefused as error:
            refused += 1
            if refused == 1:
                log.warning("%s; asking again", error.message)
            if refused >= refusals:
                raise AuthRefused(
                    f"{credentials.url} refuses the credential of {credentials.name} again and again: "
                    "it was taken away, or is that of another federation",
                    hint="ask whoever runs the federation for an invitation, and join by it",
                ) from error
        await asyncio.sleep(pause_s)


async def remind(bus: Bus, every_s: float = REMIND_S) -> None:
    """Say why there is no connection, again and again while there is none, until cancelled.

    A worker that was let in once tries for as long as it takes: it may be given its credential back.
    """
    while True:
        await asyncio.sleep(every_s)
        if not bus.connected:
            why = bus.last_error or "no answer"
            log.warning("still not connected to %s, trying on: %s", bus.credentials.url, why)

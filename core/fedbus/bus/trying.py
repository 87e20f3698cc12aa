"""Trying for a connection until there is one: the pauses, what ends it, and what is said meanwhile."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from fedbus.base.errors import AuthRefused, BusError, ConfigError, TlsRefused

log = logging.getLogger(__name__)

BACKOFF_S = (0.05, 2.0)  # first and longest pause between tries, before jitter
REFUSALS = 3  # in a row; a broker that starts, or reads its accounts anew, may refuse for a moment
REMIND_S = 60.0  # how often a reason that lasts is said again


class Trying:
    """Why there is no connection, and how long it is tried for.

    Attributes:
        last_error: why the last try failed; None while there is a connection.
        ended: nobody wants the connection any more.
    """

    def __init__(self) -> None:
        self.last_error: str | None = None
        self.ended = False
        self._was_open = False
        self._said: tuple[int, str] | None = None
        self._said_at = 0.0

    async def until_open(self, open_: Callable[[], Awaitable[None]], refusals: int | None = None) -> None:
        """Try until it works.

        What only a person can mend, such as a certificate that is not trusted, ends the first trying at once;
        a connection that was there before comes back when it is mended.

        Args:
            open_: one try.
            refusals: how often in a row the broker may refuse the credential; None: any number.

        Raises:
            AuthRefused: it refused so often.
            TlsRefused, ConfigError: there never was a connection, and with this broker and these settings
                there will be none.
        """
        pause, longest = BACKOFF_S
        refused = 0
        while not self.ended:
            try:
                await open_()
                self.last_error = self._said = None
                self._was_open = True
                return
            except AuthRefused as error:
                refused += 1
                if refusals is not None and refused >= refusals:
                    raise
                self._note(error, logging.DEBUG if refused < REFUSALS else logging.WARNING)
            except (BusError, ConfigError, OSError) as error:
                if isinstance(error, TlsRefused | ConfigError) and not self._was_open:
                    raise
                refused = 0
                self._note(error, logging.WARNING)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    def _note(self, error: Exception, level: int) -> None:
        self.last_error = text = str(error) or type(error).__name__
        now = asyncio.get_running_loop().time()
        if self._said != (level, text) or now - self._said_at >= REMIND_S:
            self._said, self._said_at = (level, text), now
            log.log(level, "broker not available, trying on: %s", text, extra={"action": "connect"})

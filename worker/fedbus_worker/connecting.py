"""A worker's first connection. Later on the bus tries for as long as it takes, and says why."""

from __future__ import annotations

from fedbus.base.errors import AuthRefused
from fedbus.bus import Bus, Credentials

# A broker that starts, or reads its accounts anew, refuses for a moment. So often in a row is an answer.
REFUSALS = 30


async def connect(credentials: Credentials, refusals: int = REFUSALS) -> Bus:
    """Connect for the first time. An absent broker is waited for as long as it takes.

    A worker that was let in once tries on when it is refused: it may be given its credential back.

    Args:
        credentials: the worker's.
        refusals: how often in a row the broker may refuse them.

    Raises:
        AuthRefused: it refused them so often.
    """
    try:
        return await Bus.connect(credentials, wait_s=None, refusals=refusals)
    except AuthRefused as error:
        raise AuthRefused(
            f"{credentials.url} refuses the credential of {credentials.name} again and again: "
            "it was taken away, or is that of another federation",
            hint="ask whoever runs the federation for an invitation, and join by it",
        ) from error

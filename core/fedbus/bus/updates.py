"""What a round's members stored, listed so that one who stores too much hides nobody but itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef

from fedbus.bus.connection import Bus
from fedbus.bus.store import AnswerTooLarge, list_subjects

log = logging.getLogger(__name__)


async def list_updates(bus: Bus, ref: RoundRef, workers: Iterable[str], leaf: str) -> list[str]:
    """Subjects of messages of a round.

    Any worker may store under any round, so the one listing of it may be made too long to be taken:
    then each member is listed by itself.

    Args:
        bus: the connection.
        ref: the round.
        workers: its members.
        leaf: `manifest` or `evaluation`.
    """
    about = {"run": ref.run, "round": ref.number}
    try:
        return list(await _listed(bus, ref, "*", leaf))
    except AnswerTooLarge as error:
        log.error("listing each member by itself: %s", error.message, extra=about)
    found: list[str] = []
    for worker in sorted(set(workers)):
        try:
            found += await _listed(bus, ref, worker, leaf)
        except AnswerTooLarge as error:
            log.error("%s is left out: %s", worker, error.message, extra={**about, "worker": worker})
    return found


async def _listed(bus: Bus, ref: RoundRef, worker: str, leaf: str) -> dict[str, int]:
    pattern = subjects.update(ref.run, ref.number, worker, "*", "*", leaf)
    return await list_subjects(bus, subjects.UPDATES, pattern)

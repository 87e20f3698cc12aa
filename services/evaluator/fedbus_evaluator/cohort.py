"""Reading what members say of a model: their evaluation reports, as FB_UPDATES keeps them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection

from fedbus.base.errors import StreamMissing
from fedbus.bus import Bus
from fedbus.bus.store import get
from fedbus.bus.updates import list_updates
from fedbus.rounds.fold import Seat
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.update import EvaluationReport

log = logging.getLogger(__name__)

# A member sends one report for each model, and another when it was restarted at a bad moment.
MOST_REPORTS = 8
Read = tuple[int, EvaluationReport]  # with its sequence


class CohortScores:
    """What was reported in each round; every message is read once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._read: dict[RoundRef, dict[str, Read | None]] = {}

    async def of(self, ref: RoundRef, model: str, seats: Collection[Seat]) -> dict[Seat, EvaluationReport]:
        """The reports on a model by a round's members: the first of each.

        Args:
            ref: the round whose members were asked.
            model: digest.
            seats: the round's members; others are not read.
        """
        known = self._read.setdefault(ref, {})
        count: Counter[Seat] = Counter()
        workers = [worker for worker, _ in seats]
        for subject in sorted(await list_updates(self._bus, ref, workers, "evaluation")):
            _, _, worker, node, attempt, _ = subjects.parse_update(subject)
            count[worker, node] += 1
            if (worker, node) in seats and subject not in known and count[worker, node] <= MOST_REPORTS:
                known[subject] = await self._one(subject, ref, worker, node, attempt)
        found: dict[Seat, Read] = {}
        for read in known.values():
            if read is not None and read[1].model == model:
                seat = (read[1].worker, read[1].node)
                found[seat] = min(found.get(seat, read), read, key=lambda each: each[0])
        return {seat: report for seat, (_, report) in found.items()}

    def forget(self, run: str, before: int) -> None:
        """Drop what was read of a run's rounds below a number."""
        for ref in [r for r in self._read if r.run == run and r.number < before]:
            del self._read[ref]

    async def _one(self, subject: str, ref: RoundRef, worker: str, node: str, attempt: str) -> Read | None:
        about = {"action": "ignore", "run": ref.run, "round": ref.number, "worker": worker}
        try:
            message = await get(self._bus, subjects.UPDATES, subject)
            report = EvaluationReport.unpack(message.data)
        except StreamMissing:
            return None  # purged meanwhile
        except ValueError as error:
            log.warning("evaluation ignored: %s", str(error)[:500], extra=about)
            return None
        # The broker vouches for the subject's worker only.
        said = (report.run, report.round, report.worker, report.node, report.attempt)
        if said != (ref.run, ref.number, worker, node, attempt):
            log.warning("evaluation ignored: it names another round or worker", extra=about)
            return None
        return int(message.headers["Nats-Sequence"]), report

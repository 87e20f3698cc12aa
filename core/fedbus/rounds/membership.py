"""What the roster says of each worker: the fold of beats and admissions into entries that change rarely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedbus_schemas.messages import Beat, Progress
from fedbus_schemas.roster import SITE_LABEL, Admission, Doing, EventKind, RosterEntry

from fedbus.rounds.roster import BEAT_S, LOST_AFTER_S, Roster

# A worker at work repeats its progress at each beat; what is older it does no more.
DOING_S = 2.5 * BEAT_S
_DOWN = ("lost", "left")
# So many changes of one worker are told within so many seconds. The roster follows later, and says what is so
# then: a worker that comes and goes all the time cannot fill logs and storage.
MOST_CHANGES, CALM_S = 4, 20.0


@dataclass(frozen=True, slots=True)
class Change:
    """An entry to write, and what to say about it."""

    entry: RosterEntry
    kind: EventKind
    reason: str


class Membership:
    """All workers that ever came.

    Args:
        entries: what the roster says so far.
        since: when the listener began to hear; nobody is lost by a silence that begins before it.
    """

    def __init__(self, entries: Iterable[RosterEntry], since: float) -> None:
        self.entries: dict[str, RosterEntry] = {entry.worker: entry for entry in entries}
        self._since = since
        self._doing: dict[str, tuple[Progress, float]] = {}
        self._told: dict[str, list[float]] = {}  # when each worker's last changes were told

    def hear_afresh(self, now: float) -> None:
        """Nobody was heard for a while because the listener could not hear."""
        self._since = now

    def hear_progress(self, progress: Progress, at: float) -> None:
        """Note what a worker does. Only of known workers: nobody can make us remember without end."""
        if progress.worker in self.entries:
            self._doing[progress.worker] = (progress, at)

    def doing(self, now: float) -> dict[str, Doing]:
        """What each worker that is at work does."""
        return {
            worker: Doing(
                run=said.run, round=said.round, phase=said.phase, fraction=said.fraction, failed=said.failed
            )
            for worker, (said, at) in sorted(self._doing.items())
            if now - at <= DOING_S and self.entries[worker].state == "here"
        }

    def note(self, entry: RosterEntry) -> None:
        """The roster says this now."""
        self.entries[entry.worker] = entry

    def told(self, worker: str, now: float) -> None:
        """A change of this worker was written, or refused, and somebody was told of it."""
        self._told[worker] = [*self._told.get(worker, []), now][-MOST_CHANGES:]

    def is_news(self, beat: Beat, now: float) -> bool:
        """Whether a beat says at once what the roster should: that a worker came, or leaves."""
        known = self.entries.get(beat.worker)
        here = known is not None and known.state == "here"
        return here == beat.leaving and not self._flaps(beat.worker, now)

    def _flaps(self, worker: str, now: float) -> bool:
        last = self._told.get(worker, [])
        # A clock that was set back must not silence a worker for as long.
        return len(last) == MOST_CHANGES and 0 <= now - last[0] < CALM_S

    def changes(self, roster: Roster, admissions: Mapping[str, Admission], now: float) -> list[Change]:
        """What the roster must say otherwise, and may: a worker that changes too often has to wait.

        Args:
            roster: who was heard.
            admissions: terms of invited workers.
            now: the listener's clock.
        """
        found = [self._change(name, roster, admissions.get(name), now) for name in roster.workers]
        unheard = [name for name in self.entries if name not in roster.workers]
        found += [self._unheard(name, roster, now) for name in unheard]
        return [c for c in found if c is not None and not self._flaps(c.entry.worker, now)]

    def _change(self, name: str, roster: Roster, admission: Admission | None, now: float) -> Change | None:
        presence, before = roster.workers[name], self.entries.get(name)
        beat = presence.beat
        entry = RosterEntry(
            worker=name,
            state="here",
            since=before.since if before and before.state == "here" else presence.at,
            site=admission.site if admission else None,
            # The invitation's word goes before the worker's own, which may only add.
            labels=_labels(beat.labels, admission),
            capabilities=beat.capabilities,
            incarnation=beat.incarnation,
        )
        if beat.leaving:
            return self._down(entry, before, "left", f"{name} said goodbye", now)
        if roster.silent(name, self._since, now):
            return self._down(entry, before, "lost", f"{name} was not heard for over {LOST_AFTER_S:g} s", now)
        if before is None:
            return Change(entry, "joined", f"{name} joined" + (f" from {entry.site}" if entry.site else ""))
        if before.state in _DOWN:
            # Within the allowance after a restart the last word of a worker that was lost still counts.
            if now - presence.at > LOST_AFTER_S:
                return None
            return Change(entry, "back", f"{name} is back")
        if before.incarnation != entry.incarnation:
            again = entry.model_copy(update={"since": presence.at})
            return Change(again, "restarted", f"{name} was started again")
        if before != entry:
            what = [
                field
                for field in ("site", "labels", "capabilities")
                if getattr(before, field) != getattr(entry, field)
            ]
            return Change(entry, "changed", f"{name} has other {' and '.join(what)}")
        return None

    def _unheard(self, name: str, roster: Roster, now: float) -> Change | None:
        before = self.entries[name]
        if before.state != "here" or not roster.silent(name, self._since, now):
            return None
        return self._down(before, before, "lost", f"{name} was not heard for over {LOST_AFTER_S:g} s", now)

    @staticmethod
    def _down(
        entry: RosterEntry, before: RosterEntry | None, state: EventKind, reason: str, now: float
    ) -> Change | None:
        if before is None or before.state in _DOWN:
            return None
        return Change(entry.model_copy(update={"state": state, "since": now}), state, reason)


def _labels(own: Mapping[str, str], admission: Admission | None) -> dict[str, str]:
    if admission is None:
        return dict(own)
    # Its site stands beside its labels, and is not the worker's to claim.
    return {**{key: value for key, value in own.items() if key != SITE_LABEL}, **admission.labels}

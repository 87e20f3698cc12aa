"""A round is the fold of its log.

Rule 1: everything that a round is follows from its entries, in the order of their
sequences. Rule 2: an entry that cannot be read, that its author may not write, that
repeats a key or that its state does not allow changes nothing; it is kept in
`ignored` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedbus_schemas.base import is_token
from fedbus_schemas.log import (
    AUTHORS,
    Aborted,
    Accepted,
    AcceptedUpdate,
    Aggregated,
    Closing,
    Entry,
    Evaluated,
    Finished,
    Member,
    Opened,
    Rejected,
    Voided,
    WorkerLost,
    decode_entry,
)
from fedbus_schemas.report import RoundState
from pydantic import ValidationError

Seat = tuple[str, str]  # worker and node
_UNREADABLE, _MAY_NOT = "wrote something unreadable", "may not write"
MOST_REJECTIONS = 4  # of one worker in one round


@dataclass(slots=True)
class Round:
    """What a round's log says. `opened` is None until the first entry that counts."""

    opened: Opened | None = None
    accepted: list[AcceptedUpdate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    lost: list[WorkerLost] = field(default_factory=list)
    voided: list[Voided] = field(default_factory=list)
    closing: Closing | None = None
    aggregated: Aggregated | None = None
    evaluated: Evaluated | None = None  # on held-out data
    federated: Evaluated | None = None  # by the cohort, on its own data
    finished: Finished | None = None
    aborted: Aborted | None = None
    first_seq: int = 0
    last_seq: int = 0
    keys: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    seats: frozenset[Seat] = frozenset()
    accepted_at: dict[Seat, float] = field(default_factory=dict)  # seconds since 1970
    _updates: dict[Seat, AcceptedUpdate] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> RoundState | None:
        """The state's name; None before `opened`."""
        if self.opened is None:
            return None
        if self.aborted:
            return "aborted"
        if self.finished:
            return "finished"
        if self.aggregated:
            return "aggregated"
        return "closing" if self.closing else "open"

    @property
    def ended(self) -> bool:
        """Nothing more will be decided about this round."""
        return self.aborted is not None or self.finished is not None

    @property
    def quorum(self) -> int:
        """Fewest updates that make a model."""
        return self.opened.quorum if self.opened else 1

    @property
    def members(self) -> list[Member]:
        """The cohort's seats."""
        return self.opened.members if self.opened else []

    @property
    def counted(self) -> list[AcceptedUpdate]:
        """What is folded, in fold order: accepted and not voided."""
        gone = {(v.worker, v.node) for v in self.voided}
        return [u for u in self.accepted if (u.worker, u.node) not in gone]

    def accepted_from(self, worker: str, node: str) -> AcceptedUpdate | None:
        """The update of that seat that counts, if there is one."""
        return self._updates.get((worker, node))

    def has_verdict(self, worker: str, node: str, attempt: str) -> bool:
        """Whether this attempt was accepted or rejected.

        A peer names its attempts itself. One whose name no entry can carry never counts, and
        nothing can be said about it: that is settled too.
        """
        if not (is_token(node) and is_token(attempt)):
            return True
        update = self.accepted_from(worker, node)
        if update is not None and update.attempt == attempt:
            return True
        return f"rejected:{worker}:{node}:{attempt}" in self.keys

    def wants_verdict(self, worker: str, node: str, attempt: str) -> bool:
        """Whether a stored manifest should still be judged.

        A worker that keeps sending what is refused is not answered for ever: the log is a
        record of the round, not of its noise.
        """
        if self.ended or self.has_verdict(worker, node, attempt):
            return False
        return sum(r.worker == worker for r in self.rejected) < MOST_REJECTIONS

    def can_count(self, worker: str, node: str, attempt: str) -> bool:
        """Whether an attempt may still be accepted: it wants a verdict, and its seat is there and free."""
        seat = (worker, node)
        free = seat in self.seats and seat not in self._updates and not self.full
        return free and self.wants_verdict(worker, node, attempt)

    @property
    def full(self) -> bool:
        """No further update can count: every seat has one, or the first model has been made.

        One update makes the first model. Nothing says that a second one has the same tensors.
        """
        one_is_enough = self.opened is not None and self.opened.base is None
        return len(self.accepted) >= (1 if one_is_enough else len(self.seats))

    @property
    def awaited(self) -> list[Seat]:
        """Seats that are neither accepted, nor rejected, nor lost."""
        settled: set[Seat] = {*self._updates, *((r.worker, r.node) for r in self.rejected)}
        settled |= {(w.worker, w.node) for w in self.lost}
        return [(m.worker, m.node) for m in self.members if (m.worker, m.node) not in settled]

    def knows(self, entry: Entry) -> bool:
        """Whether all that the entry says stands in the log already."""
        return all(key in self.keys for key in entry.keys)

    @staticmethod
    def is_breach(reason: str) -> bool:
        """Whether an ignored entry is one that no working service writes."""
        return _UNREADABLE in reason or _MAY_NOT in reason

    def read(self, seq: int, author: str, data: bytes) -> None:
        """Fold one stored message in.

        Args:
            seq: its sequence in FB_ROUNDS.
            author: the last token of its subject, which the broker checked.
            data: its payload.
        """
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        self.first_seq = self.first_seq or seq
        try:
            entry = decode_entry(data)
        except ValidationError as error:
            self.ignored.append(f"{seq}: {author} {_UNREADABLE} ({error.error_count()} errors)")
            return
        if AUTHORS[entry.kind] != author:
            self.ignored.append(f"{seq}: {author} {_MAY_NOT} {entry.kind!r}")
            return
        refusal = self._apply(entry)
        if refusal:
            self.ignored.append(f"{seq}: {entry.kind} {refusal}")

    def _apply(self, entry: Entry) -> str | None:
        if self.knows(entry):
            return "repeats a key"
        if isinstance(entry, Opened):
            if self.opened is not None:
                return "comes after the round was opened"
            self.opened = entry
            self.seats = frozenset((m.worker, m.node) for m in entry.members)
        elif self.opened is None:
            return "comes before the round was opened"
        elif self.ended and not isinstance(entry, Evaluated):
            return "comes after the round ended"
        else:
            refusal = self._advance(entry)
            if refusal:
                return refusal
        # Those of `accepted` were noted one by one: an update that was passed over does not stand in the log.
        if not isinstance(entry, Accepted):
            self.keys.update(entry.keys)
        return None

    def _advance(self, entry: Entry) -> str | None:
        match entry:
            case Accepted():
                return self._accept(entry)
            case Rejected():
                if self.has_verdict(entry.worker, entry.node, entry.attempt):
                    return "names an update that counts"
                self.rejected.append(entry)
            case WorkerLost():
                seat = (entry.worker, entry.node)
                if seat not in self.seats or seat in self._updates:
                    return "names no member that is waited for"
                self.lost.append(entry)
            case Closing() if self.closing is None:
                self.closing = entry
            case Voided() if (
                self.closing and not self.aggregated and self.accepted_from(entry.worker, entry.node)
            ):
                self.voided.append(entry)
            case Aggregated() if self.closing:
                self.aggregated = entry
            case Evaluated() if self.aggregated and self.aggregated.model == entry.model:
                if entry.federated:
                    self.federated = entry
                else:
                    self.evaluated = entry
            case Finished() if self.aggregated:
                self.finished = entry
            case Aborted() if not self.aggregated:
                self.aborted = entry
            case _:
                return f"is not allowed while the round is {self.state}"
        return None

    def _accept(self, entry: Accepted) -> str | None:
        if self.closing is not None:
            return "comes after closing"
        taken: set[Seat] = set()
        for update in entry.updates:
            seat = (update.worker, update.node)
            free = seat in self.seats and seat not in self._updates and not self.full
            if free and not self.has_verdict(*seat, update.attempt):
                taken.add(seat)
                self._updates[seat] = update
                self.accepted.append(update)
                self.accepted_at[seat] = entry.at
                self.keys.add(update.key)
        self.lost = [lost for lost in self.lost if (lost.worker, lost.node) not in taken]
        return None if taken else "names no update that can count"

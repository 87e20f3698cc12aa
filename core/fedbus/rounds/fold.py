"""A round is the fold of its log.

Rule 1: everything that a round is follows from its entries, in the order of their
sequences. Rule 2: an entry that cannot be read, that its author may not write, that
repeats a key or that its state does not allow changes nothing; it is kept in
`ignored` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    evaluated: Evaluated | None = None
    finished: Finished | None = None
    aborted: Aborted | None = None
    first_seq: int = 0
    last_seq: int = 0
    keys: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)

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
        return next((u for u in self.accepted if (u.worker, u.node) == (worker, node)), None)

    def has_verdict(self, worker: str, node: str, attempt: str) -> bool:
        """Whether this attempt was accepted or rejected."""
        update = self.accepted_from(worker, node)
        if update is not None and update.attempt == attempt:
            return True
        return f"rejected:{worker}:{node}:{attempt}" in self.keys

    @property
    def awaited(self) -> list[Seat]:
        """Seats that are neither accepted, nor rejected, nor lost."""
        settled: set[Seat] = {(u.worker, u.node) for u in self.accepted}
        settled |= {(r.worker, r.node) for r in self.rejected}
        settled |= {(w.worker, w.node) for w in self.lost}
        return [(m.worker, m.node) for m in self.members if (m.worker, m.node) not in settled]

    def knows(self, entry: Entry) -> bool:
        """Whether all that the entry says stands in the log already."""
        return all(key in self.keys for key in entry.keys)

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
            self.ignored.append(f"{seq}: {author} wrote something unreadable ({error.error_count()} errors)")
            return
        if AUTHORS[entry.kind] != author:
            self.ignored.append(f"{seq}: {author} may not write {entry.kind!r}")
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
        elif self.opened is None:
            return "comes before the round was opened"
        elif self.ended and not isinstance(entry, Evaluated):
            return "comes after the round ended"
        else:
            refusal = self._advance(entry)
            if refusal:
                return refusal
        self.keys.update(entry.keys)
        return None

    def _advance(self, entry: Entry) -> str | None:
        match entry:
            case Accepted():
                return self._accept(entry)
            case Rejected():
                self.rejected.append(entry)
            case WorkerLost():
                if self.accepted_from(entry.worker, entry.node):
                    return "names a member whose update counts"
                self.lost.append(entry)
            case Closing() if self.closing is None:
                self.closing = entry
            case Voided() if self.closing and not self.aggregated:
                self.voided.append(entry)
            case Aggregated() if self.closing:
                self.aggregated = entry
            case Evaluated() if self.aggregated and self.aggregated.model == entry.model:
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
        seats = {(m.worker, m.node) for m in self.members}
        for update in entry.updates:
            seat = (update.worker, update.node)
            if seat not in seats or self.accepted_from(*seat):
                continue
            self.accepted.append(update)
            self.lost = [lost for lost in self.lost if (lost.worker, lost.node) != seat]
        return None

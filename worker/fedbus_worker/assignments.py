"""What a worker has to do, from what was announced. Pure: announcements in, assignments out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedbus.rounds.planning import derive_seed
from fedbus.tasks.task import Partition, Site
from fedbus_schemas.base import Payload
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import Member
from fedbus_schemas.messages import Announcement
from pydantic_core import from_json


@dataclass(frozen=True, slots=True)
class Assignment:
    """One seat of one open round."""

    announcement: Announcement
    member: Member

    @property
    def ref(self) -> RoundRef:
        """The round."""
        return RoundRef(self.announcement.run, self.announcement.round)

    @property
    def only_scores(self) -> bool:
        """Nothing is left to train: the run's last model is to be scored on this member's data."""
        return self.announcement.state == "closed"

    @property
    def seed(self) -> int:
        """Seed of this member's training, the same for everyone who computes it.

        It goes with the part of shipped data: who happens to hold the part changes nothing.
        """
        part = self.member.partition
        who = f"part-{part}" if part is not None else f"{self.member.worker}/{self.member.node}"
        return derive_seed(self.announcement.plan, self.ref.number, who)

    def site(self, data: str | None, labels: dict[str, str]) -> Site:
        """Where this member's data is: a part of the shipped data, or the worker's own folder."""
        plan, part = self.announcement.plan, self.member.partition
        partition = None
        if plan.data is not None and part is not None:
            partition = Partition(
                kind=plan.data.partition,
                parts=plan.data.parts,
                id=part,
                seed=plan.seed,
                alpha=plan.data.alpha,
                shards=plan.data.shards,
            )
        return Site(data=data, partition=partition, labels=labels)


class Announced:
    """The last announcement of every run that this worker heard of, and what it gave up of them."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._last: dict[str, Announcement] = {}
        self._given_up: set[tuple[RoundRef, bool]] = set()  # a round's training, or (True) its score

    def read(self, data: Payload) -> Announcement:
        """Read an announcement, of its members those that are this worker, with the plan as known.

        A plan and the seats of others are not looked at: in small rounds that was most of the work.

        Raises:
            pydantic.ValidationError: the bytes are not an announcement.
        """
        try:
            fields = from_json(data)
        except ValueError:
            return Announcement.model_validate_json(data)  # says what is wrong
        if isinstance(fields, dict):
            known = self._last.get(str(fields.get("run")))
            if known is not None and fields.get("plan_digest") == known.plan_digest:
                fields["plan"] = known.plan  # that is what the digest names
            if isinstance(members := fields.get("members"), list):
                ours = (each for each in members if isinstance(each, dict))
                fields["members"] = [each for each in ours if each.get("worker") == self._worker]
        return Announcement.model_validate(fields)

    def hear(self, announcement: Announcement) -> bool:
        """Note an announcement; False when it is old, repeated, or not what its digest says."""
        known = self._last.get(announcement.run)
        if known is not None and not _is_newer(announcement, known):
            return False
        # A run's plan stays the same: it need not be hashed at each round.
        same = known is not None and known.plan == announcement.plan
        if announcement.plan_digest != (known.plan_digest if known and same else announcement.plan.digest()):
            return False
        self._last[announcement.run] = announcement
        # The round before may still have its files here, and its refusal in our inbox.
        same = known is not None and known.run_at == announcement.run_at
        self._given_up = {
            (ref, scoring)
            for ref, scoring in self._given_up
            if ref.run != announcement.run or (same and ref.number >= announcement.round - 1)
        }
        return True

    def give_up(self, ref: RoundRef, *, scoring: bool = False) -> None:
        """Offer a round no more: its training failed or was refused, or the score of its model failed."""
        self._given_up.add((ref, scoring))

    def has_given_up(self, ref: RoundRef) -> bool:
        """Whether the training of a round was given up lately."""
        return (ref, False) in self._given_up

    def forget(self, announced: Collection[str]) -> None:
        """Forget runs that are over and announced no more.

        One that looks open stays: a replica of the stream that is behind may not know it yet.

        Args:
            announced: runs that are.
        """
        gone = {r for r, news in self._last.items() if news.state == "closed"} - set(announced)
        self._last = {run: news for run, news in self._last.items() if run not in gone}
        self._given_up = {(ref, scoring) for ref, scoring in self._given_up if ref.run not in gone}

    def open(self) -> list[Assignment]:
        """This worker's seats in open rounds that it did not give up, longest open first."""
        return self._seats(lambda announcement: announcement.state == "open")

    def to_score(self, now: float) -> list[Assignment]:
        """This worker's seats in runs that are over, whose last model it shall score.

        Args:
            now: seconds since 1970; announcements are kept for days, scores are wanted for minutes.
        """
        return self._seats(
            lambda news: news.state == "closed" and bool(news.score) and now <= (news.score_until or 0.0)
        )

    def _seats(self, wanted: Callable[[Announcement], bool]) -> list[Assignment]:
        found = [
            Assignment(announcement, member)
            for announcement in self._last.values()
            if wanted(announcement)
            for member in announcement.members
            if member.worker == self._worker
        ]
        left = [each for each in found if (each.ref, each.only_scores) not in self._given_up]
        return sorted(left, key=lambda a: a.announcement.opened_at)

    def knows(self, run: str) -> bool:
        """Whether anything of this run is announced."""
        return run in self._last

    def is_over(self, ref: RoundRef) -> bool:
        """Whether a round is known to take no more updates."""
        last = self._last.get(ref.run)
        if last is None:
            return False
        return last.round > ref.number or (last.round == ref.number and last.state == "closed")

    def is_replaced(self, announcement: Announcement) -> bool:
        """Whether its run began anew since: it was restored, or another one has its name."""
        last = self._last.get(announcement.run)
        return last is not None and last.run_at > announcement.run_at

    def is_run_over(self, run: str) -> bool:
        """Whether a run's last round is known to take no more updates."""
        last = self._last.get(run)
        return last is not None and last.over

    def counted(self, ref: RoundRef) -> bool | None:
        """Whether this worker's update counted in a round that is over; None: not known any more."""
        last = self._last.get(ref.run)
        if last is None or last.ended is None or last.ended.round != ref.number:
            return None
        return self._worker in last.ended.accepted

    def has_model(self, ref: RoundRef) -> bool:
        """Whether a round that is over is known to have made a model: of another member's update, perhaps."""
        last = self._last.get(ref.run)
        if last is None:
            return False
        return last.round > ref.number or (last.ended is not None and bool(last.ended.accepted))


def _is_newer(new: Announcement, old: Announcement) -> bool:
    return _progress(new) > _progress(old)


def _progress(announcement: Announcement) -> tuple[float, int, bool, bool]:
    """A round is open, then closed; a run's last round then asks for a score of what it made.

    A run that is restored from a backup begins again at an earlier round.
    """
    closed = announcement.state == "closed"
    return announcement.run_at, announcement.round, closed, closed and announcement.score is not None

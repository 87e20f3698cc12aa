"""Which stored manifests are to be judged next."""

from __future__ import annotations

from fedbus.rounds.fold import MOST_REJECTIONS
from fedbus.rounds.stored import StoredManifests
from support.rounds import accepted, fold, opened, rejected, update

A, B = ("a", "0", "a"), ("b", "0", "a")


def test_manifests_are_judged_in_their_order_and_each_once() -> None:
    stored, round_ = StoredManifests(), fold(opened("a", "b"))
    assert [stored.note(A), stored.note(B), stored.note(A)] == [True, True, False]
    assert stored.next(round_, ()) == A
    assert stored.next(round_, {A}) == B
    assert stored.next(round_, {A, B}) is None
    assert stored.next(round_, ()) == A, "what was verified and never accepted is judged again"


def test_one_with_a_verdict_is_not_looked_at_again() -> None:
    stored = StoredManifests()
    stored.note(A)
    stored.note(B)
    assert stored.next(fold(opened("a", "b"), accepted(update("a")), rejected("b")), ()) is None
    assert stored.next(fold(opened("a", "b")), ()) is None
    assert not stored.note(A)


def test_a_worker_that_stores_without_end_is_not_remembered_without_end() -> None:
    stored = StoredManifests()
    noted = [stored.note(("a", "0", str(i))) for i in range(MOST_REJECTIONS + 5)]
    assert noted.count(True) == MOST_REJECTIONS + 1
    assert stored.note(B)

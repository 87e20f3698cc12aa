"""Room in the broker's storage: what a round may need, and what goes first when it is short."""

from __future__ import annotations

from fedbus.rounds.storage import Free, expendable, obsolete, shortage
from fedbus_schemas.ids import RoundRef
from support.rounds import NOW, plan, record

MB = 1_000_000


def test_a_round_that_fits_lacks_nothing() -> None:
    assert shortage(plan(), 4, MB, Free(5 * MB, 2 * MB)) is None


def test_updates_that_may_not_fit_are_named() -> None:
    said = shortage(plan(), 4, MB, Free(4 * MB, 2 * MB))
    assert said == "the round's updates may need 4 MB, the broker has 4 MB free for it"


def test_a_model_that_may_not_fit_is_named() -> None:
    said = shortage(plan(), 4, MB, Free(9 * MB, 1 * MB))
    assert said == "the round's model may need 1 MB, the broker has 1 MB free for it"


def test_the_plans_bound_on_an_update_counts() -> None:
    assert shortage(plan(limits={"mb_per_worker": 0.5}), 4, MB, Free(2 * MB, 2 * MB)) is None


def test_what_a_round_may_take_is_gone_until_the_broker_is_asked_again() -> None:
    free, rounds = Free(20 * MB, 20 * MB), 0
    while shortage(plan(), 4, MB, free) is None:
        free, rounds = free.after(plan(), 4, MB), rounds + 1
    assert rounds == 4  # each update and each model is counted with a little more than it weighs
    assert "may need" in str(shortage(plan(), 4, MB, free))
    assert shortage(plan(), 4, MB, Free(-MB, MB)) is not None


def test_updates_are_kept_for_as_many_rounds_as_the_plan_says() -> None:
    assert [obsolete(plan(), n) for n in (1, 2, 3, 9)] == [-2, -1, 0, 6]
    assert obsolete(plan(retain={"rounds": 0}), 1) == 0
    assert obsolete(plan(retain="all"), 9) == -1


def test_what_is_missed_least_goes_first() -> None:
    records = {
        "old": record(plan(), done=True, open_round=2),
        "newer": record(plan(), done=True, open_round=2).model_copy(update={"created_at": NOW + 1}),
        "open": record(plan(), open_round=5),
        "kept": record(plan(retain="all"), done=True, open_round=5),
    }
    stored = [
        RoundRef("open", 5),
        RoundRef("open", 4),
        RoundRef("open", 3),
        RoundRef("kept", 1),
        RoundRef("newer", 2),
        RoundRef("old", 2),
        RoundRef("old", 1),
        RoundRef("nobodys", 7),
    ]
    assert [str(ref) for ref in expendable(stored, records)] == [
        "nobodys/7",
        "old/1",
        "old/2",
        "newer/2",
        "open/3",
        "open/4",
    ]


def test_an_open_round_is_never_touched() -> None:
    """A planner that lags behind must not take the updates of the round that another one opened."""
    behind = record(plan(), open_round=3)
    assert expendable([RoundRef("run-1", 3), RoundRef("run-1", 4)], {"run-1": behind}) == []

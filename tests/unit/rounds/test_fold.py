"""A round is the fold of its log: each transition, each refusal, and the laws that hold for any history."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from fedbus.rounds.fold import MOST_REJECTIONS, Round
from fedbus_schemas.log import (
    AUTHORS,
    Accepted,
    AcceptedUpdate,
    Entry,
    Opened,
    Rejected,
    decode_entry,
    encode_entry,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.rounds import (
    aborted,
    accepted,
    aggregated,
    closing,
    digest,
    evaluated,
    finished,
    fold,
    lost,
    opened,
    rejected,
    said,
    update,
    voided,
)

START = opened("w1", "w2", "w3")


def _after(*entries: Entry) -> Round:
    return fold(START, *entries)


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ([], None),
        ([START], "open"),
        ([START, accepted("w1")], "open"),
        ([START, accepted("w1"), closing()], "closing"),
        ([START, closing(), aggregated()], "aggregated"),
        ([START, closing(), aggregated(), finished()], "finished"),
        ([START, aborted()], "aborted"),
        ([START, closing(), aborted()], "aborted"),
    ],
)
def test_states(entries: list[Entry], state: str | None) -> None:
    round_ = fold(*entries)
    assert round_.state == state
    assert round_.ended == (state in ("finished", "aborted"))
    assert round_.ignored == []


def test_who_is_waited_for() -> None:
    round_ = _after(accepted("w1"), rejected("w2"), lost("w3"))
    assert round_.awaited == []
    assert _after().awaited == [("w1", "0"), ("w2", "0"), ("w3", "0")]
    assert _after(lost("w2")).awaited == [("w1", "0"), ("w3", "0")]


def test_a_lost_member_that_comes_back_counts_and_is_no_longer_lost() -> None:
    round_ = _after(lost("w1"), accepted("w1"))
    assert round_.lost == []
    assert [u.worker for u in round_.accepted] == ["w1"]


def test_a_voided_update_is_left_out_of_the_fold_but_was_accepted() -> None:
    round_ = _after(accepted("w1", "w2"), closing(), voided("w1"))
    assert [u.worker for u in round_.counted] == ["w2"]
    assert [u.worker for u in round_.accepted] == ["w1", "w2"]


def test_a_score_may_come_after_the_round_ended() -> None:
    round_ = _after(closing(), aggregated(), finished(), evaluated())
    assert round_.evaluated is not None
    assert round_.state == "finished"


@pytest.mark.parametrize(
    ("before", "entry", "reason"),
    [
        ([], accepted("w1"), "before the round was opened"),
        ([START], START.model_copy(update={"target": 1}), "repeats a key"),
        ([START, accepted("w1")], accepted("w1"), "repeats a key"),
        ([START], accepted("stranger"), "no update that can count"),
        ([START, accepted("w1")], accepted(update("w1", "b")), "no update that can count"),
        ([START, rejected("w1")], accepted("w1"), "no update that can count"),
        ([START, accepted("w1")], rejected("w1"), "an update that counts"),
        ([START, rejected("w1")], rejected("w1"), "repeats a key"),
        ([START, accepted("w1")], lost("w1"), "no member that is waited for"),
        ([START], lost("stranger"), "no member that is waited for"),
        ([START, lost("w1")], lost("w1"), "repeats a key"),
        ([START, closing()], accepted("w1"), "after closing"),
        ([START, closing()], closing().model_copy(update={"code": "deadline"}), "repeats a key"),
        ([START, accepted("w1")], voided("w1"), "not allowed while the round is open"),
        ([START, closing()], voided("w1"), "not allowed while the round is closing"),
        ([START, accepted("w1"), closing(), aggregated()], voided("w1"), "not allowed"),
        ([START], aggregated(), "not allowed while the round is open"),
        ([START, closing(), aggregated()], aggregated("other"), "repeats a key"),
        ([START, closing()], evaluated(), "not allowed while the round is closing"),
        ([START, closing(), aggregated()], evaluated("other"), "not allowed"),
        ([START, closing()], finished(), "not allowed while the round is closing"),
        ([START, closing(), aggregated()], aborted(), "not allowed while the round is aggregated"),
        ([START, aborted()], accepted("w1"), "after the round ended"),
        ([START, aborted()], aborted(), "repeats a key"),
        ([START, aborted()], evaluated(), "not allowed"),
        ([START, closing(), aggregated(), finished()], rejected("w1"), "after the round ended"),
    ],
)
def test_what_the_state_does_not_allow_changes_nothing(
    before: list[Entry], entry: Entry, reason: str
) -> None:
    round_ = fold(*before)
    state = said(fold(*before))
    round_.read(99, AUTHORS[entry.kind], encode_entry(entry))
    assert said(round_) == state
    assert len(round_.ignored) == 1
    assert round_.ignored[0].startswith("99: ")
    assert reason in round_.ignored[0]
    assert round_.last_seq == 99


EVERY_KIND: list[Entry] = [
    START, accepted("w1"), rejected("w2"), lost("w3"), closing(),
    voided("w1"), aggregated(), evaluated(), finished(), aborted(),
]  # fmt: skip


@pytest.mark.parametrize("author", ["planner", "aggregator", "evaluator", "enroll", "w1", ""])
@pytest.mark.parametrize("entry", EVERY_KIND, ids=lambda entry: entry.kind)
def test_only_its_author_may_write_a_kind(entry: Entry, author: str) -> None:
    assert {e.kind for e in EVERY_KIND} == set(AUTHORS)
    round_ = _after(accepted("w1"))
    round_.read(99, author, encode_entry(entry))
    refused = any("may not write" in reason for reason in round_.ignored)
    assert refused == (AUTHORS[entry.kind] != author)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"{}",
        b'{"kind":"opened"}',
        b'{"kind":"no-such-kind","at":1}',
        b'{"kind":"finished","at":NaN}',
        b'{"kind":"finished","at":-1}',
        b'{"kind":"finished","at":1,"more":1}',
        b'{"kind":"finished","at":1' + b"[" * 100_000,
        b'{"kind":"aggregated","at":1,"model":"'
        + b"0" * 64
        + b'","bytes":'
        + b"9" * 10_000
        + b',"weight":1}',
        b'{"kind":"closing","at":1,"code":"a.b","reason":""}',
    ],
    ids=range(12),
)
def test_what_cannot_be_read_changes_nothing(data: bytes) -> None:
    for author in ("planner", "aggregator"):
        round_ = _after(closing())
        round_.read(99, author, data)
        assert said(round_) == said(_after(closing()))
        assert "unreadable" in round_.ignored[0]


def test_a_sequence_is_read_once() -> None:
    round_ = _after()
    round_.read(1, "aggregator", encode_entry(accepted("w1")))
    assert round_.accepted == []
    assert round_.first_seq == 1


def test_one_update_makes_the_first_model() -> None:
    """A second one might have other tensors, which no sum could take."""
    round_ = fold(opened("w1", "w2", base=None), accepted("w1", "w2"), accepted("w2"))
    assert [u.worker for u in round_.accepted] == ["w1"]
    assert round_.full


def test_an_update_that_was_passed_over_does_not_stand_in_the_log() -> None:
    entry = accepted("w1", "stranger")
    round_ = _after(entry)
    assert [u.worker for u in round_.accepted] == ["w1"]
    assert not round_.knows(entry)
    assert not round_.knows(accepted("stranger"))
    assert round_.knows(accepted("w1"))


@pytest.mark.parametrize("name", ["é", "", "a b", "a\n", "-a", "a" * 65, "a:b"])
def test_an_attempt_that_no_entry_can_name_wants_no_verdict(name: str) -> None:
    """A worker chooses these tokens of its subjects; nobody must stumble over them or wait for them."""
    for node, attempt in ((name, "a"), ("0", name)):
        assert not _after().wants_verdict("w1", node, attempt)
        assert not _after().can_count("w1", node, attempt)


def test_a_worker_that_is_refused_again_and_again_is_not_answered_for_ever() -> None:
    refusals = [rejected("w1", f"a{i}") for i in range(MOST_REJECTIONS)]
    assert _after(*refusals[1:]).wants_verdict("w1", "0", "next")
    assert not _after(*refusals).wants_verdict("w1", "0", "next")
    assert _after(*refusals).wants_verdict("w2", "0", "next")


# Any history

WORKERS = ["w1", "w2", "w3", "stranger"]
workers, attempts = st.sampled_from(WORKERS), st.sampled_from("abc")
updates = st.builds(update, workers, attempts)
junk = st.sampled_from(
    [("planner", b"junk"), ("enroll", encode_entry(closing())), ("evaluator", b'{"kind":1}')]
)


def _written(entries: st.SearchStrategy[Entry]) -> st.SearchStrategy[tuple[str, bytes]]:
    return entries.map(lambda entry: (AUTHORS[entry.kind], encode_entry(entry)))


messages = st.one_of(
    _written(st.lists(updates, min_size=1, max_size=4).map(lambda batch: accepted(*batch))),
    _written(st.builds(rejected, workers, attempts)),
    _written(st.builds(lost, workers)),
    _written(st.one_of(st.just(closing()), st.builds(voided, workers), st.just(aggregated()))),
    _written(st.sampled_from([evaluated(), evaluated("other"), finished(), aborted(), START])),
    junk,
)
bases = st.sampled_from([digest("base"), None])
histories = st.tuples(bases, st.lists(messages, max_size=25))


def _history(base: str | None, entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [("planner", encode_entry(opened("w1", "w2", "w3", base=base))), *entries]


def _fold_all(history: list[tuple[str, bytes]], seen: Callable[[Round, int], None] | None = None) -> Round:
    round_ = Round()
    for seq, (author, data) in enumerate(history, 1):
        round_.read(seq, author, data)
        if seen:
            seen(round_, seq)
    return round_


@settings(max_examples=150)
@given(histories)
def test_the_accepted_set_is_what_an_oracle_counts_by_hand(
    drawn: tuple[str | None, list[tuple[str, bytes]]],
) -> None:
    history = _history(*drawn)
    expected: list[AcceptedUpdate] = []
    refused: set[tuple[str, str]] = set()
    for author, data in history[1:]:
        entry = _entry(author, data)
        if entry is None:
            continue
        if entry.kind in ("closing", "aborted"):
            break
        if isinstance(entry, Rejected) and (entry.worker, entry.attempt) not in {
            (u.worker, u.attempt) for u in expected
        }:
            refused.add((entry.worker, entry.attempt))
        for new in entry.updates if isinstance(entry, Accepted) else []:
            taken = {u.worker for u in expected}
            room = drawn[0] is not None or not expected
            known = new.worker in taken or (new.worker, new.attempt) in refused
            if new.worker != "stranger" and room and not known:
                expected.append(new)
    assert _fold_all(history).accepted == expected


def _entry(author: str, data: bytes) -> Entry | None:
    try:
        entry = decode_entry(data)
    except ValidationError:
        return None
    return entry if AUTHORS[entry.kind] == author else None


@settings(max_examples=150)
@given(histories, st.data())
def test_repeating_what_took_effect_changes_nothing(
    drawn: tuple[str | None, list[tuple[str, bytes]]], data: st.DataObject
) -> None:
    history = _history(*drawn)
    repeated: list[tuple[str, bytes]] = []
    effective: list[tuple[str, bytes]] = []
    round_ = Round()
    for seq, message in enumerate(history, 1):
        before = len(round_.ignored)
        round_.read(seq, *message)
        if len(round_.ignored) == before:
            effective.append(message)
        # At once, whatever it was; and anything earlier that counted, at any later time.
        repeated += [message] * data.draw(st.integers(1, 3))
        repeated += data.draw(st.lists(st.sampled_from(effective), max_size=2)) if effective else []
    assert said(_fold_all(repeated)) == said(round_)


@settings(max_examples=150)
@given(histories)
def test_an_author_recognises_its_own_entry_and_nothing_is_taken_back(
    drawn: tuple[str | None, list[tuple[str, bytes]]],
) -> None:
    history = _history(*drawn)
    order = [None, "open", "closing", "aggregated", "finished"]
    past: list[tuple[str | None, list[str], list[AcceptedUpdate]]] = []

    def look(round_: Round, seq: int) -> None:
        entry = _entry(*history[seq - 1])
        effective = not any(text.startswith(f"{seq}: ") for text in round_.ignored)
        if entry is not None and effective and not isinstance(entry, Accepted):
            assert round_.knows(entry)
        if isinstance(entry, Accepted) and effective:
            standing = [u for u in entry.updates if u in round_.accepted]
            assert standing
            assert round_.knows(entry.model_copy(update={"updates": standing}))
        past.append((round_.state, sorted(round_.keys), list(round_.accepted)))

    _fold_all(history, look)
    for (state, keys, before), (later, more, after) in pairwise(past):
        assert set(keys) <= set(more)
        assert after[: len(before)] == before
        assert later == "aborted" or order.index(later) >= order.index(state)


@given(histories)
def test_verdicts_and_seats_agree(drawn: tuple[str | None, list[tuple[str, bytes]]]) -> None:
    round_ = _fold_all(_history(*drawn))
    counted = {(u.worker, u.attempt) for u in round_.accepted}
    refused = {(r.worker, r.attempt) for r in round_.rejected}
    assert not counted & refused
    assert len({u.worker for u in round_.accepted}) == len(round_.accepted)
    for worker in WORKERS:
        for attempt in "abc":
            assert round_.has_verdict(worker, "0", attempt) == ((worker, attempt) in counted | refused)
            if round_.can_count(worker, "0", attempt):
                again = _fold_all(_history(*drawn))
                again.read(10_000, "aggregator", encode_entry(accepted(update(worker, attempt))))
                assert (update(worker, attempt) in again.accepted) == (again.closing is None)


def test_a_round_is_opened_once() -> None:
    assert isinstance(START, Opened)
    assert fold(START, opened("w9")).members == START.members

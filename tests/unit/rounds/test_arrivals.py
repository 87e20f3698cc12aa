"""Copies come late, twice, out of order or not at all: each stored message is delivered once, in order."""

from __future__ import annotations

from fedbus.rounds.arrivals import Arrivals
from fedbus.rounds.fold import Round
from fedbus_schemas.log import AUTHORS, Entry, encode_entry
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import accepted, aggregated, closing, finished, lost, opened, rejected, said

ROUNDS = 3
SCRIPT: list[Entry] = [
    opened("w1", "w2", "w3"), accepted("w1"), rejected("w2"), accepted("w1"), lost("w3"),
    accepted("w3"), closing(), accepted("w2"), aggregated(), finished(),
]  # fmt: skip


def test_in_order_copies_pass_straight_through() -> None:
    arrivals: Arrivals[str] = Arrivals(4)
    assert arrivals.copy(5, "a") == ["a"]
    assert arrivals.copy(6, "b") == ["b"]
    assert arrivals.complete == 6
    assert not arrivals.missing


def test_a_gap_holds_back_and_says_what_to_read() -> None:
    arrivals: Arrivals[str] = Arrivals(0)
    assert arrivals.copy(3, "c") == []
    assert list(arrivals.missing) == [1, 2]
    assert arrivals.copy(1, "a") == ["a"]
    assert list(arrivals.missing) == [2]
    assert arrivals.copy(2, "b") == ["b", "c"]


def test_an_own_append_is_delivered_ahead_and_its_copy_is_not() -> None:
    arrivals: Arrivals[str] = Arrivals(0)
    assert arrivals.ahead(2, "own") == ["own"]
    assert arrivals.ahead(2, "own") == []
    assert arrivals.copy(2, "own") == []
    assert arrivals.complete == 0
    assert arrivals.copy(1, "a") == ["a"]
    assert arrivals.complete == 2


def test_an_own_append_that_was_held_as_a_copy_is_delivered_once() -> None:
    arrivals: Arrivals[str] = Arrivals(0)
    assert arrivals.copy(2, "own") == []
    assert arrivals.ahead(2, "own") == ["own"]
    assert arrivals.copy(1, "a") == ["a"]
    assert arrivals.complete == 2


def test_what_was_deleted_is_given_up_after_a_read() -> None:
    arrivals: Arrivals[str] = Arrivals(0)
    arrivals.copy(4, "d")
    arrivals.copy(2, "b")
    assert arrivals.read_up_to(3) == ["b", "d"]
    assert arrivals.complete == 4
    assert arrivals.copy(3, "deleted meanwhile") == []
    assert arrivals.read_up_to(1) == []
    assert arrivals.complete == 4


class Stream:
    """Messages of several rounds under one sequence, and a follower that reads as `bus/log.py` does."""

    def __init__(self, rounds: list[int], deleted: set[int], start: int) -> None:
        self.stored: dict[int, tuple[int, Entry]] = {}
        scripts = [iter(SCRIPT) for _ in range(ROUNDS)]
        for seq, number in enumerate(rounds, 1):
            entry = next(scripts[number], None)
            if entry is not None and seq not in deleted:
                self.stored[seq] = (number, entry)
        self.last = len(rounds)
        self.arrivals: Arrivals[int] = Arrivals(start)
        self.delivered: list[int] = []
        self.rounds = [Round() for _ in range(ROUNDS)]

    def deliver(self, seqs: list[int]) -> None:
        for seq in seqs:
            number, entry = self.stored[seq]
            self.delivered.append(seq)
            self.rounds[number].read(seq, AUTHORS[entry.kind], encode_entry(entry))

    def read_round(self, number: int) -> None:
        """Read one round as far as it is stored now; what a refused append does."""
        after = self.rounds[number].last_seq
        for seq in [s for s, (n, _) in self.stored.items() if n == number and s > after]:
            self.deliver(self.arrivals.ahead(seq, seq))

    def catch_up(self, upto: int) -> None:
        while self.arrivals.complete < upto:
            following = [s for s in self.stored if s > self.arrivals.complete]
            if not following:
                self.deliver(self.arrivals.read_up_to(upto))
                return
            self.deliver(self.arrivals.read_up_to(following[0] - 1))
            self.deliver(self.arrivals.copy(following[0], following[0]))


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, ROUNDS - 1), min_size=1, max_size=30),
    st.sets(st.integers(1, 30), max_size=4),
    st.integers(0, 5),
    st.data(),
)
def test_any_interleaving_repetition_or_loss_gives_the_same_state(
    rounds: list[int], deleted: set[int], start: int, data: st.DataObject
) -> None:
    stream = Stream(rounds, deleted, min(start, len(rounds)))
    begin = stream.arrivals.complete
    for seq in [s for s in stream.stored if s <= begin]:
        del stream.stored[seq]  # before our time: another round's past
    # Copies: some lost, some twice, some out of order; between them reads and own appends.
    seqs = data.draw(st.lists(st.sampled_from(range(1, stream.last + 1)), max_size=50))
    for seq in seqs:
        match data.draw(st.sampled_from(["copy", "copy", "copy", "append", "resync"])):
            case "copy" if seq in stream.stored or seq <= begin:
                stream.deliver(stream.arrivals.copy(seq, seq))
            case "append" if seq in stream.stored:
                stream.read_round(stream.stored[seq][0])
            case "resync" if stream.arrivals.missing:
                stream.catch_up(stream.arrivals.missing.stop - 1)
            case _:
                pass
    stream.catch_up(stream.last)

    assert sorted(stream.delivered) == list(stream.stored)
    assert stream.arrivals.complete == max(begin, stream.last)
    plain = [Round() for _ in range(ROUNDS)]
    for seq, (number, entry) in stream.stored.items():
        plain[number].read(seq, AUTHORS[entry.kind], encode_entry(entry))
        order = [s for s in stream.delivered if stream.stored[s][0] == number]
        assert order == sorted(order)
    assert [said(r) for r in stream.rounds] == [said(r) for r in plain]
    assert [r.ignored for r in stream.rounds] == [r.ignored for r in plain]

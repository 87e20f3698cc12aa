"""Which models of a run travel whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fedbus.rounds.broadcast import travels_whole
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.update import MOST_DELTAS, ModelManifest, TensorSpec
from support.rounds import digest, plan

ROUNDS = 250


def base(run: str, number: int) -> ModelManifest:
    return ModelManifest(
        run=run, round=number, parent=None, codec="dense", size_bytes=4, chunks=[digest("0")],
        table=[TensorSpec(name="w", shape=(1,), dtype="float32")],
    )  # fmt: skip


def whole(codec: dict[str, object], start: str = "run-1") -> list[int]:
    """Rounds whose model travels whole."""
    planned = plan(rounds=ROUNDS, codec=codec)
    bases = [base(start, 0), *(base("run-1", number) for number in range(1, ROUNDS))]
    numbers = range(1, ROUNDS + 1)
    return [n for n in numbers if travels_whole(planned, RoundRef("run-1", n), bases[n - 1])]


@pytest.mark.parametrize("often", [2, 20, MOST_DELTAS])
def test_every_so_many_and_the_last(often: int) -> None:
    expected = sorted({*range(often, ROUNDS + 1, often), ROUNDS})
    assert whole({"down": "ecq", "full_every": often}) == expected


def test_the_first_model_of_a_run_does() -> None:
    planned = plan(codec={"down": "ecq"})
    assert travels_whole(planned, RoundRef("run-1", 0), None)
    assert whole({"down": "ecq"}, start="run-0")[:2] == [1, 20], "the base is another run's"


@pytest.mark.parametrize("often", [2, MOST_DELTAS])
def test_nobody_is_further_from_a_whole_model_than_a_chain_may_be_long(often: int) -> None:
    found = [0, *whole({"down": "topk", "full_every": often})]
    assert max(after - before for before, after in pairwise(found)) <= MOST_DELTAS


@pytest.mark.parametrize("codec", ["dense", "bf16", "int8"])
def test_all_do_where_no_differences_are_sent(codec: str) -> None:
    assert whole({"down": codec}) == list(range(1, ROUNDS + 1))

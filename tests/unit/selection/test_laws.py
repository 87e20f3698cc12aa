"""The laws that every registered selection keeps, a new one included by being registered."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fedbus.selection import Selection, selections
from hypothesis import given, settings
from hypothesis import strategies as st

EVERY = pytest.mark.parametrize("name", selections.names())
LAWS = settings(max_examples=60)
names = st.lists(st.integers(0, 10_000).map(lambda n: f"w{n}"), unique=True, min_size=1, max_size=60)
seeds = st.integers(0, 2**32 - 1)


def _made(name: str) -> Selection:
    return selections.build(name, {})


@EVERY
@LAWS
@given(names, st.integers(0, 70), seeds)
def test_it_chooses_so_many_of_them_in_join_order(
    name: str, eligible: list[str], count: int, seed: int
) -> None:
    given_ = list(eligible)
    chosen = _made(name).choose(eligible, count, np.random.default_rng(seed))
    assert eligible == given_
    assert len(chosen) == min(count, len(eligible))
    assert chosen == [worker for worker in eligible if worker in set(chosen)]


@EVERY
@LAWS
@given(names, st.integers(1, 60), seeds)
def test_the_same_seed_chooses_the_same_whoever_joined_first(
    name: str, eligible: list[str], count: int, seed: int
) -> None:
    one = _made(name).choose(eligible, count, np.random.default_rng(seed))
    again = _made(name).choose(list(eligible), count, np.random.default_rng(seed))
    turned = _made(name).choose(eligible[::-1], count, np.random.default_rng(seed))
    assert one == again == turned[::-1]


def test_uniform_is_uniform() -> None:
    eligible = [f"w{i}" for i in range(10)]
    drawn = Counter(
        worker
        for seed in range(2000)
        for worker in _made("uniform").choose(eligible, 3, np.random.default_rng(seed))
    )
    # 600 expected each, standard deviation 20.5: five of them.
    assert all(abs(times - 600) < 103 for times in drawn.values())
    assert set(drawn) == set(eligible)

"""The laws that every registered strategy keeps, a new one included by being registered."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fedbus.strategies import Columnwise, Strategy, Vector, strategies, strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

NAMES = strategies.names()
COLUMNWISE_NAMES = [name for name in NAMES if isinstance(strategy(name), Columnwise)]
EVERY = pytest.mark.parametrize("name", NAMES)
RUNNING = pytest.mark.parametrize("name", sorted(set(NAMES) - set(COLUMNWISE_NAMES)))
COLUMNWISE = pytest.mark.parametrize("name", COLUMNWISE_NAMES)
LAWS = settings(max_examples=40)
sizes = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)
weights = st.lists(st.integers(1, 100_000), min_size=1, max_size=12)


def _updates(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Shape (count, size), of several scales."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, size)) * np.exp2(rng.integers(-20, 5, (count, 1)))).astype(np.float32)


def _fold(made: Strategy, updates: NDArray[np.float32], w: list[int], chunk: int | None = None) -> Vector:
    """As the aggregator does it: spans of one update after another, or a span of all of them.

    Both kinds may spoil what they are given.
    """
    size = updates.shape[1]
    spans = [slice(i, i + (chunk or size)) for i in range(0, size, chunk or size)]
    if isinstance(made, Columnwise):
        combined = np.full(size, np.nan, np.float32)
        for span in reversed(spans):
            made.combine(span.start, updates[:, span].copy(), np.array(w, np.float64), combined[span])
        return combined
    made.start(size)
    for x, weight in zip(updates.copy(), w, strict=True):
        for span in spans:
            made.add(span.start, x[span], float(weight))
        made.counted(float(weight))
    out = np.full(size, np.nan, np.float32)
    for span in reversed(spans):  # each span stands for itself
        made.finish(span.start, out[span])
    return out


def _mean(updates: NDArray[np.float32], w: list[int]) -> NDArray[np.float64]:
    """Plain numpy in float64: the oracle."""
    return np.average(updates.astype(np.float64), axis=0, weights=np.array(w, np.float64))


def _tolerance(updates: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.abs(updates).max(axis=0) * (len(updates) + 3) * 2.0**-23 + 1e-37


@RUNNING
@LAWS
@given(weights, sizes, seeds)
def test_it_is_the_weighted_mean(name: str, w: list[int], size: int, seed: int) -> None:
    updates = _updates(len(w), size, seed)
    error = np.abs(_fold(strategy(name), updates, w) - _mean(updates, w))
    assert (error <= _tolerance(updates)).all()


@EVERY
@LAWS
@given(weights, sizes, seeds, st.integers(2, 1000))
def test_only_the_proportion_of_weights_matters(
    name: str, w: list[int], size: int, seed: int, factor: int
) -> None:
    updates = _updates(len(w), size, seed)
    scaled = _fold(strategy(name), updates, [factor * weight for weight in w])
    assert (np.abs(scaled - _fold(strategy(name), updates, w)) <= 2 * _tolerance(updates)).all()


@EVERY
@LAWS
@given(weights, sizes, seeds)
def test_identical_updates_give_that_update(name: str, w: list[int], size: int, seed: int) -> None:
    one = _updates(1, size, seed)
    folded = _fold(strategy(name), np.repeat(one, len(w), axis=0), w)
    assert (np.abs(folded - one[0]) <= _tolerance(np.repeat(one, len(w), axis=0))).all()


@EVERY
def test_equal_weights_of_a_single_update_are_exact(name: str) -> None:
    one = _updates(1, 1000, 7)
    assert _fold(strategy(name), one, [1]).tobytes() == one[0].tobytes()


@EVERY
@LAWS
@given(weights, sizes, seeds, st.integers(1, 64))
def test_chunks_give_the_bits_of_the_whole(name: str, w: list[int], size: int, seed: int, chunk: int) -> None:
    updates = _updates(len(w), size, seed)
    whole = _fold(strategy(name), updates, w)
    assert _fold(strategy(name), updates, w, chunk).tobytes() == whole.tobytes()


@EVERY
@LAWS
@given(weights, sizes, seeds)
def test_the_same_order_gives_the_same_bits_and_another_order_the_same_model(
    name: str, w: list[int], size: int, seed: int
) -> None:
    updates = _updates(len(w), size, seed)
    folded = _fold(strategy(name), updates, w)
    assert _fold(strategy(name), updates, w).tobytes() == folded.tobytes()
    turned = _fold(strategy(name), updates[::-1], w[::-1])
    assert (np.abs(turned - folded) <= 2 * _tolerance(updates)).all()


@EVERY
@LAWS
@given(weights, sizes, sizes, seeds)
def test_a_round_leaves_nothing_to_the_next(
    name: str, w: list[int], size: int, other: int, seed: int
) -> None:
    used = strategy(name)
    _fold(used, _updates(3, other, seed), [1, 2, 3])
    updates = _updates(len(w), size, seed)
    assert _fold(used, updates, w).tobytes() == _fold(strategy(name), updates, w).tobytes()
    # A fold that was given up half way leaves nothing either.
    if not isinstance(used, Columnwise):
        used.start(size)
        used.add(0, np.ones(size, np.float32), 5.0)
        used.counted(5.0)
    assert _fold(used, updates, w).tobytes() == _fold(strategy(name), updates, w).tobytes()


@EVERY
def test_nothing_that_was_written_out_is_changed_later(name: str) -> None:
    """The sum's memory is used again; what a round wrote must not live in it."""
    made = strategy(name)
    first = _fold(made, _updates(2, 100, 1), [1, 1])
    kept = first.copy()
    _fold(made, _updates(2, 100, 2), [1, 1])
    assert first.tobytes() == kept.tobytes()


@RUNNING
def test_no_update_has_no_mean(name: str) -> None:
    made = strategy(name)
    assert not isinstance(made, Columnwise)
    made.start(3)
    with pytest.raises(ZeroDivisionError):
        made.finish(0, np.empty(3, np.float32))


@COLUMNWISE
@LAWS
@given(weights, sizes, seeds, st.randoms())
def test_the_order_of_updates_changes_no_bit(
    name: str, w: list[int], size: int, seed: int, chance: random.Random
) -> None:
    updates = _updates(len(w), size, seed)
    updates[:, ::3] = np.copysign(0, updates[:, ::3])  # zeros of both signs are equal, and sort as they like
    turned = chance.sample(range(len(w)), len(w))
    folded = _fold(strategy(name), updates, w)
    assert _fold(strategy(name), updates[turned], [w[i] for i in turned]).tobytes() == folded.tobytes()

"""The shipped rules on ranks: what numpy says, whatever the weights, and no further than honest values go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedbus.base.errors import PlanRefused
from fedbus.strategies import Columnwise, Vector, strategies
from fedbus.strategies.sorting import sorted_tiles
from fedbus.strategies.trimmed_mean import TrimmedMean
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

LAWS = settings(max_examples=40)
counts, sizes, seeds = st.integers(1, 12), st.integers(1, 300), st.integers(0, 2**32 - 1)
RULES = pytest.mark.parametrize(
    ("name", "params"),
    [
        ("median", {}),
        ("trimmed_mean", {}),
        ("trimmed_mean", {"trim": 0.01}),
        ("trimmed_mean", {"trim": 0.49}),
    ],
)


def combine(name: str, params: dict[str, Any], rows: Vector, weights: list[float] | None = None) -> Vector:
    made = strategies.build(name, params)
    assert isinstance(made, Columnwise)
    out = np.full(rows.shape[1], np.nan, np.float32)
    made.combine(0, rows.copy(), np.array(weights or [1.0] * len(rows)), out)
    return out


def updates(count: int, size: int, seed: int) -> Vector:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, size)) * np.exp2(rng.integers(-20, 5, (count, 1)))).astype(np.float32)


def oracle(name: str, params: dict[str, Any], rows: Vector) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    if name == "median":
        return np.asarray(np.median(exact, axis=0))
    gone = TrimmedMean(TrimmedMean.Params(**params)).left_out(len(rows))
    kept: NDArray[np.float64] = np.sort(exact, axis=0)[gone : len(rows) - gone]
    return np.asarray(kept.mean(axis=0))


@RULES
@LAWS
@given(counts, sizes, seeds)
def test_it_is_what_numpy_says(name: str, params: dict[str, Any], count: int, size: int, seed: int) -> None:
    rows = updates(count, size, seed)
    expected = oracle(name, params, rows)
    folded = combine(name, params, rows)
    if name == "median":
        assert folded.tobytes() == expected.astype(np.float32).tobytes()
    np.testing.assert_allclose(folded, expected, rtol=1e-6, atol=1e-12 * np.abs(rows).max())


@RULES
@LAWS
@given(counts, sizes, seeds)
def test_what_a_worker_says_of_its_examples_is_ignored(
    name: str, params: dict[str, Any], count: int, size: int, seed: int
) -> None:
    rows = updates(count, size, seed)
    claimed = [1e9, *range(1, count)]
    assert combine(name, params, rows, claimed).tobytes() == combine(name, params, rows).tobytes()


@RULES
@LAWS
@given(st.integers(3, 15), sizes, seeds, st.floats(1, 1e38))
def test_a_minority_moves_no_coordinate_beyond_what_honest_ones_say(
    name: str, params: dict[str, Any], count: int, size: int, seed: int, far: float
) -> None:
    rows = updates(count, size, seed)
    hostile = (count - 1) // 2
    if name == "trimmed_mean":
        hostile = TrimmedMean(TrimmedMean.Params(**params)).left_out(count)
    honest = rows[hostile:]
    rng = np.random.default_rng(seed)
    rows[:hostile] = far * rng.choice([-1.0, 1.0], (hostile, size))
    folded = combine(name, params, rows)
    # float32 keeps 24 bits of what the mean of equal values is.
    slack = np.abs(honest).max(axis=0) * 2.0**-23
    assert (folded >= honest.min(axis=0) - slack).all()
    assert (folded <= honest.max(axis=0) + slack).all()


def test_known_values() -> None:
    rows = np.array([(1, 0), (2, 1), (3, 2), (4, 3), (100, -100)], np.float32)
    assert combine("median", {}, rows).tolist() == [3, 1]
    assert combine("median", {}, rows[:4]).tolist() == [2.5, 1.5]
    assert combine("trimmed_mean", {"trim": 0.2}, rows).tolist() == [3, 1]
    assert combine("trimmed_mean", {"trim": 0.4}, rows).tolist() == [3, 1]
    assert combine("trimmed_mean", {"trim": 0.01}, rows[:2]).tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("trim", "count", "gone"),
    [
        (0.2, 5, 1),
        (0.2, 10, 2),
        (0.1, 5, 1),
        (0.07, 100, 7),
        (0.3, 10, 3),
        (0.2, 1, 0),
        (0.2, 2, 0),
        (0.49, 4, 1),
    ],
)
def test_a_share_is_rounded_up_and_never_takes_all(trim: float, count: int, gone: int) -> None:
    assert TrimmedMean(TrimmedMean.Params(trim=trim)).left_out(count) == gone


@pytest.mark.parametrize("wrong", [{"trim": 0.0}, {"trim": 0.5}, {"trim": -0.1}, {"tri": 0.1}])
def test_a_share_of_none_or_half_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanRefused, match=r"^trimmed_mean: tri"):
        strategies.build("trimmed_mean", wrong)


def test_a_chunk_is_sorted_in_tiles() -> None:
    """A whole chunk, so that there are several tiles and a short one."""
    rows = updates(7, 258_048 - 5, 1)
    expected = np.sort(rows, axis=0).T
    for place, tile in sorted_tiles(rows):
        np.testing.assert_array_equal(tile, expected[place])
    assert combine("median", {}, rows).tobytes() == np.median(rows, axis=0).tobytes()

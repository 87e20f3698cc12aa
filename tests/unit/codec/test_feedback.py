"""Laws over many updates, of every registered codec: with feedback nothing is lost for good."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fedbus.codec import Codec, Vector
from support.codecs import CASES, made_of

EVERY = pytest.mark.parametrize("case", CASES)

SIZE = 1000
ROUNDS = 300  # topk sends each element of a vector like this about three times meanwhile

Updates = Callable[[int], Vector]


def _normal(number: int) -> Vector:
    return np.random.default_rng(number).standard_normal(SIZE).astype(np.float32)


def _one_tower(number: int) -> Vector:
    x = _normal(number)
    x[7] = 100
    return x


# What each update of a run is, by its number.
KINDS: dict[str, Updates] = {
    "fresh": _normal,
    "the same": lambda _: _normal(0),
    "all alike": lambda _: np.full(SIZE, 0.01, np.float32),
    "opposite": lambda number: np.full(SIZE, 0.01 * (-1) ** number, np.float32),
    "one tower": _one_tower,
    "every scale": lambda _: _normal(0) * np.exp2(np.arange(SIZE) % 60 - 40).astype(np.float32),
    "then nothing": lambda number: _normal(number) * np.float32(number < 50),
}


def _decoded(made: Codec, x: Vector) -> Vector:
    body, blosc = made.encode(x)
    out = np.empty_like(x)
    made.decode(memoryview(body), blosc, out)
    return out


@EVERY
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_what_is_decoded_follows_the_sum_of_what_was_trained(case: str, kind: str) -> None:
    made = made_of(case)
    rounds = max(ROUNDS, round(3 / CASES[case][1].get("fraction", 1)))
    lost = np.zeros(SIZE, np.float32)
    true, sent, behind, norms = np.zeros(SIZE), np.zeros(SIZE), [], []
    for number in range(2 * rounds):
        update = KINDS[kind](number)
        x = update + lost
        got = _decoded(made, x)
        assert (np.abs(x.astype(np.float64) - got) <= made.bound(x)).all()
        lost = x - got
        true += update
        sent += got
        behind.append(float(np.linalg.norm(true - sent)))
        norms.append(float(np.linalg.norm(update)))
    # What is still to be sent stops growing, however long the run: it is bounded, not a random walk.
    assert max(behind[rounds:]) <= 1.3 * max(behind[:rounds]) + 1e-3 * max(norms)


@EVERY
def test_the_error_averages_out_where_the_codec_says_so(case: str) -> None:
    made = made_of(case)
    if not made.unbiased:
        return
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SIZE).astype(np.float32)
    trials = 400
    mean, alone = np.zeros(SIZE), 0.0
    for _ in range(trials):
        # As good as the same values, and as different as two updates: what is drawn is drawn anew.
        near = x * (1 + 1e-5 * rng.standard_normal(SIZE)).astype(np.float32)
        error = _decoded(made, near).astype(np.float64) - near
        mean += error / trials
        alone += float(error @ error) / trials
    assert float(mean @ mean) <= 2 * alone / trials

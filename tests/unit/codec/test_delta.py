"""Laws of models that travel as differences: the same bits on both sides, and nothing is lost for good."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused, DigestMismatch
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.delta import add_delta, check_values, seal_delta, values_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span
from fedbus_schemas.update import TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.codecs import CASES, made_of

FEEDBACK = [case for case in CASES if made_of(case).feedback]
SIZE = 1000
ROUNDS = 200
LOSSY, EXACT = Grid.of(
    [
        TensorSpec(name="w", shape=(SIZE,), dtype="float32"),
        TensorSpec(name="mean", shape=(SIZE,), dtype="float32", group="exact"),
    ]
).spans
ECQ = Framing("ecq")


def _normal(seed: int, scale: float = 1.0) -> Vector:
    return (np.random.default_rng(seed).standard_normal(SIZE) * scale).astype(np.float32)


def _bits(values: Vector) -> list[int]:
    return values.view(np.uint32).tolist()


class Server:
    """Who makes the models of a run."""

    def __init__(self, case: str, first: Vector) -> None:
        self.framing = Framing(*CASES[case])
        self.values = first.copy()
        self.lost = np.zeros(SIZE, np.float32)
        self._scratch = np.empty(SIZE, np.float32)

    def step(self, update: Vector) -> bytes:
        change = update + self.lost
        data = seal_delta(self.framing, LOSSY, change, self.values, self._scratch)
        self.lost = change
        return data


@pytest.mark.parametrize("case", FEEDBACK)
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_models_follow_the_exact_sum_within_the_codecs_bound(case: str, scale: float) -> None:
    server = Server(case, _normal(0))
    follower, exact = _normal(0), _normal(0).astype(np.float64)
    scratch, behind = np.empty(SIZE, np.float32), []
    for number in range(1, ROUNDS + 1):
        before = server.values.astype(np.float64)
        update = _normal(number, scale)
        data = server.step(update)
        add_delta(Framing(CASES[case][0]), data, chunk_digest(data), LOSSY, follower, scratch)
        assert _bits(follower) == _bits(server.values)
        exact += update
        distance = np.abs(server.values - exact)
        bound = made_of(case).bound((exact - before).astype(np.float32))
        assert (distance <= bound + ROUNDS * 1e-6).all(), number
        # What is kept is what is missing, so that a whole model can be made of both at any time.
        np.testing.assert_allclose(server.values + server.lost.astype(np.float64), exact, atol=ROUNDS * 1e-6)
        behind.append(float(distance.max()))
    if CASES[case][0] == "ecq":
        assert max(behind[ROUNDS // 2 :]) <= 1.5 * max(behind[: ROUNDS // 2]), "it does not grow"


@given(
    values=arrays(np.float32, SIZE, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    change=arrays(np.float32, SIZE, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    case=st.sampled_from(sorted(CASES)),
    span=st.sampled_from([LOSSY, EXACT]),
)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
def test_what_is_sealed_is_what_comes_out(values: Vector, change: Vector, case: str, span: Span) -> None:
    framing, scratch = Framing(*CASES[case]), np.empty(SIZE, np.float32)
    made, wanted, missing = values.copy(), values + change, change.copy()
    data = seal_delta(framing, span, missing, made, scratch)
    got = values.copy()
    add_delta(Framing(CASES[case][0]), data, chunk_digest(data), span, got, scratch)
    assert _bits(got) == _bits(made)
    check_values(got, values_digest(made), span)
    if span is EXACT:
        assert _bits(made) == _bits(wanted), "exact tensors are exact"
        assert not missing.any()
    again = seal_delta(framing, span, change.copy(), values.copy(), scratch)
    assert again == data, "the same bytes each time"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("span", [LOSSY, EXACT])
def test_what_is_not_finite_is_not_sealed(value: float, span: Span) -> None:
    change = _normal(1)
    change[5] = value
    with pytest.raises(ChunkRefused, match="non-finite"):
        seal_delta(ECQ, span, change, _normal(2), np.empty(SIZE, np.float32))


@pytest.mark.parametrize("span", [LOSSY, EXACT])
def test_a_sum_that_is_not_finite_is_not_sealed(span: Span) -> None:
    large = np.full(SIZE, 3e38, np.float32)
    with pytest.raises(ChunkRefused, match="non-finite"), np.errstate(over="ignore"):
        seal_delta(Framing("dense"), span, large.copy(), large.copy(), np.empty(SIZE, np.float32))


def test_other_values_are_noticed() -> None:
    values = _normal(1)
    digest = values_digest(values)
    check_values(values, digest, LOSSY)
    values[7] = np.nextafter(values[7], np.float32(9))
    with pytest.raises(DigestMismatch, match="chunk 0: the sum's SHA-256"):
        check_values(values, digest, LOSSY)

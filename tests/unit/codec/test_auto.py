"""Which codec a worker takes where the plan leaves it to the worker."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus.codec import Vector, codec
from fedbus.codec.auto import MOST_LOST, choose
from fedbus.codec.measure import measure

RNG = np.random.default_rng(5)
SIZE = 60_000
FEW_LARGE = (RNG.standard_normal(SIZE) * np.repeat(np.exp(2 * RNG.standard_normal(SIZE // 100)), 100)).astype(
    np.float32
)
NORMAL = RNG.standard_normal(SIZE).astype(np.float32)
ALIKE = (RNG.choice([-1e-3, 1e-3], SIZE) * RNG.uniform(0.5, 1.5, SIZE)).astype(np.float32)


@pytest.mark.parametrize(
    ("sample", "name", "params"),
    [
        (FEW_LARGE, "ecq", {"step": 4.0}),  # as after SGD
        (NORMAL, "ecq", {"step": 2.0}),
        (ALIKE, "ecq", {"step": 1.0}),
        (np.zeros(10, np.float32), "ecq", {"step": 4.0}),
        (np.array([1, np.nan], np.float32), "int8", {}),
    ],
    ids=["few large", "normal", "alike", "zeros", "nan"],
)
def test_the_data_decides(sample: Vector, name: str, params: dict[str, float]) -> None:
    chosen = choose(sample).codec
    assert (chosen.name, chosen.params) == (name, params)


@pytest.mark.parametrize("sample", [FEW_LARGE, NORMAL, ALIKE])
def test_what_is_chosen_loses_little_and_says_how_little(sample: Vector) -> None:
    choice = choose(sample)
    measured = measure(codec(choice.codec.name, choice.codec.params), sample)
    assert measured.nmse <= MOST_LOST
    assert choice.why.startswith(f"{choice.codec.name}, ")
    said = f"{measured.ratio:.0f} times fewer bytes, NMSE {measured.nmse:.2g} on the first chunk"
    assert choice.why.endswith(said)

"""The task without learning: what it adds is what its parameters say, the same from the same seed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fedbus import Site, Step
from fedbus.tasks.params import build_params, build_task
from fedbus.tasks.resident import Resident
from fedbus_worker.tasks.noop import STRETCH, Noop


def _trained(seed=1, **params):
    task = build_task(Noop, params)
    model = task.model(0)
    task.train(model, None, Step(build_params(Noop, params), seed, 1, lambda fraction: None))
    return model["w"]


def test_it_adds_one_number():
    assert (_trained(elements=10, value=2.5) == 2.5).all()
    drawn = _trained(elements=10)
    assert (drawn == drawn[0]).all()
    assert drawn[0] not in (0, _trained(seed=2, elements=10)[0])


def test_it_adds_noise_around_it():
    elements = 2 * STRETCH + 7
    values = _trained(elements=elements, value=5.0, spread=0.5)
    assert values.mean() == pytest.approx(5, abs=0.01)
    assert values.std() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(values[:7], values[-7:])
    np.testing.assert_array_equal(values, _trained(elements=elements, value=5.0, spread=0.5))
    with pytest.raises(ValueError, match="spread"):
        build_params(Noop, {"spread": -1.0})


def test_a_round_takes_the_memory_of_one_model(tmp_path):
    elements = 4_000_000
    resident = Resident("fedbus_worker.tasks.noop:Noop", {"elements": elements})
    table, _ = resident.init(0)
    weights = np.memmap(tmp_path / "base", np.float32, "w+", shape=(elements,))
    out = np.memmap(tmp_path / "delta", np.float32, "w+", shape=(elements,))
    tracemalloc.start()
    try:
        for number in (1, 2):
            resident.train(Site(), weights, table, number, number, lambda share: None, lambda: out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The model's own vector, made anew; what it was when tracing began is not counted.
    assert 4 * elements <= peak < 1.1 * 4 * elements

"""The numpy-only task: its gradient, and that four skewed workers learn the digits together."""

from __future__ import annotations

import numpy as np
import pytest
from fedbus import Site, Step
from fedbus.tasks.params import build_params, build_task
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Partition
from fedbus_worker.tasks.digits import Digits
from fedbus_worker.tasks.digits_linear import DigitsLinear

SPEC = "fedbus_worker.tasks.digits_linear:DigitsLinear"
TASK = build_task(DigitsLinear, {})
HELD_OUT = Site(held_out=True)


def _step(seed=1, **params):
    return Step(build_params(DigitsLinear, params), seed, 1, lambda fraction: None)


def test_the_images_are_those_of_the_digits_task():
    theirs = build_task(Digits, {})
    for site in (HELD_OUT, Site(partition=Partition("dirichlet", 4, 2, seed=5, alpha=0.3))):
        x, y = TASK.load(site)
        their_x, their_y = theirs.load(site)
        assert (x == their_x.reshape(-1, 64)).all()
        assert (y == their_y).all()


def test_four_skewed_workers_learn_by_federated_averaging():
    workers = [Resident(SPEC, {}) for _ in range(4)]
    table, arrays = workers[0].init(0)
    weights = np.concatenate([arrays[row["name"]].reshape(-1) for row in table])
    assert weights.shape == (650,)
    for number in range(1, 11):
        total, mean = 0, np.zeros(650, np.float32)
        for i, worker in enumerate(workers):
            delta = np.empty(650, np.float32)
            site = Site(partition=Partition("dirichlet", 4, i, seed=7, alpha=0.3))
            trained = worker.train(
                site, weights, table, 100 * number + i, number, lambda _: None, lambda delta=delta: delta
            )
            mean += trained.num_examples * delta
            total += trained.num_examples
        weights = weights + mean / total
    scored = workers[0].evaluate(HELD_OUT, weights, table)
    assert total + scored.num_examples == 1797
    assert scored.metrics["accuracy"] >= 0.93
    assert scored.metrics["loss"] < 0.4


def test_one_step_follows_the_gradient():
    """Against central differences, in float64, weight decay included."""
    chance = np.random.RandomState(0)
    x, y = chance.standard_normal((6, 64)), np.array([0, 1, 2, 3, 9, 9])
    start = {"weight": 0.1 * chance.standard_normal((64, 10)), "bias": 0.1 * chance.standard_normal(10)}
    stepped = {name: array.copy() for name, array in start.items()}
    TASK.train(stepped, (x, y), _step(epochs=1, batch_size=6, lr=1.0, weight_decay=0.01))

    def loss(name, index, change):
        moved = {key: array.copy() for key, array in start.items()}
        moved[name][index] += change
        penalty = 0.01 * (moved["weight"] ** 2).sum() / 2
        return TASK.evaluate(moved, (x, y)).metrics["loss"] + penalty

    for name, index in [
        ("weight", (0, 0)),
        ("weight", (63, 9)),
        ("weight", (5, 4)),
        ("bias", 3),
        ("bias", 9),
    ]:
        slope = (loss(name, index, 1e-5) - loss(name, index, -1e-5)) / 2e-5
        assert start[name][index] - stepped[name][index] == pytest.approx(slope, rel=1e-5)


def test_the_same_seed_trains_alike_and_another_does_not():
    data = TASK.load(HELD_OUT)
    outcomes = []
    for seed in (3, 3, 2**40 + 3):
        model = TASK.model(0)
        trained = TASK.train(model, data, _step(seed))
        outcomes.append((model["weight"].tobytes(), trained.metrics["loss"]))
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_a_loss_that_overflows_is_told():
    model = {"weight": np.full((64, 10), np.nan, np.float32), "bias": np.zeros(10, np.float32)}
    with pytest.raises(ValueError, match="the loss is nan in epoch 1; a lower lr may help"):
        TASK.train(model, TASK.load(HELD_OUT), _step())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"lr": 0.0}, r"lr: must be above 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay: must be at least 0, got -1\.0"),
        ({"momentum": 0.9}, "momentum: unknown key"),
    ],
)
def test_wrong_parameters_are_named(given, reason):
    with pytest.raises(ValueError, match=reason):
        build_params(DigitsLinear, given)

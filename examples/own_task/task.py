"""Linear regression without torch: a whole training task in numpy.

Each site's data is `data.csv` in its `--data` folder: numbers only, the target in the last
column. Without a folder the sites share made-up data, dealt out by the plan's `data:`.
Runs in the trainer process: numpy and the standard library are all it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedbus import Evaluated, Site, Step, Trained, TrainingTask

Model = dict[str, np.ndarray]
Data = tuple[np.ndarray, np.ndarray]

TRUTH = np.array([2.0, -1.0, 0.5], np.float32)  # what the made-up data hides
OFFSET = 3.0
NOISE = 0.1


class LinearRegression(TrainingTask):
    """Finds weights and offset by gradient descent on the squared error."""

    name = "linear-regression"

    @dataclass(frozen=True)
    class Params:
        """The plan's `train:` section. Fields need types; defaults are used where the plan is silent."""

        features: int = 3
        steps: int = 20
        lr: float = 0.1

        def __post_init__(self) -> None:
            if self.features < 1 or self.steps < 1:
                raise ValueError("features and steps: must be at least 1")
            if not self.lr > 0:
                raise ValueError(f"lr: must be above 0, got {self.lr}")

    def load(self, site: Site) -> Data:
        """This site's examples. Called once for each site; kept between rounds."""
        if site.data is not None:
            rows = np.loadtxt(Path(site.data) / "data.csv", delimiter=",", dtype=np.float32, ndmin=2)
            x, y = rows[:, :-1], rows[:, -1]
        elif site.held_out:
            x, y = _made_up(seed=1, count=500)
        else:
            x, y = _made_up(seed=0, count=3000)
            # `select` deals by class, so that sites may differ: here by the sign of the first feature.
            mine = site.select(x[:, 0] > 0)
            x, y = x[mine], y[mine]
        if x.shape[1] != self.params.features:
            raise ValueError(f"features: the data has {x.shape[1]}, got {self.params.features}")
        return x, y

    def model(self, seed: int) -> Model:
        """Anything may be a model; here it is the dictionary that travels."""
        return {"weights": np.zeros(self.params.features, np.float32), "offset": np.zeros(1, np.float32)}

    def arrays(self, model: Model) -> Model:
        """The tensors that are sent and averaged, by name."""
        return model

    def set_arrays(self, model: Model, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over the federation's tensors."""
        model.update(arrays)

    def train(self, model: Model, data: Data, step: Step) -> Trained:
        """Train in place. The number of examples is this site's weight in the mean."""
        x, y = data
        for i in range(step.params.steps):
            error = _predict(model, x) - y
            model["weights"] -= step.params.lr * (x.T @ error) / len(y)
            model["offset"] -= step.params.lr * error.mean()
            step.progress((i + 1) / step.params.steps)
        return Trained(len(y), {"mse": _mse(model, data)})

    def evaluate(self, model: Model, data: Data) -> Evaluated:
        """Score the model; the evaluator calls this on the held-out data."""
        return Evaluated(len(data[1]), {"mse": _mse(model, data)})


def _predict(model: Model, x: np.ndarray) -> np.ndarray:
    return x @ model["weights"] + model["offset"]


def _mse(model: Model, data: Data) -> float:
    x, y = data
    return float(np.mean((_predict(model, x) - y) ** 2, dtype=np.float64))


def _made_up(seed: int, count: int) -> Data:
    chance = np.random.RandomState(seed)
    x = chance.standard_normal((count, len(TRUTH))).astype(np.float32)
    noise = NOISE * chance.standard_normal(count).astype(np.float32)
    return x, x @ TRUTH + np.float32(OFFSET) + noise

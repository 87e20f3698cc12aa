"""The protocol that training code keeps to.

A task runs in the trainer child: no credential, no network, any interpreter from
Python 3.9 with numpy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Dict, Mapping, Optional

import numpy as np

from fedbus.tasks.partition import part_of

Arrays = Dict[str, np.ndarray]


@dataclass(frozen=True)
class Partition:
    """Which part of shipped data this worker trains on.

    Attributes:
        kind: partitioner: iid, dirichlet, shards or by-label.
        parts: how many parts there are.
        id: this worker's part, from 0.
        seed: the plan's seed; all parts are cut with the same one.
        alpha: concentration, for dirichlet.
        shards: shards per part, for shards.
    """

    kind: str
    parts: int
    id: int
    seed: int
    alpha: float = 1.0
    shards: int = 2


@dataclass(frozen=True)
class Site:
    """Where the data is.

    Attributes:
        data: the worker's own data folder (`join --data`), or None.
        partition: the part of shipped data to train on, or None for all of it.
        held_out: load the data that no worker trains on (the evaluator asks this).
        labels: the worker's labels.
    """

    data: Optional[str] = None
    partition: Optional[Partition] = None
    held_out: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def select(self, labels: Any) -> np.ndarray:
        """Which examples of a data set this worker trains on.

        Args:
            labels: one label per example of the whole training pool, of shape (n,).

        Returns:
            Sorted int64 indices: of this worker's part, or of all n where there is no partition.

        Raises:
            ValueError: the partition is unknown, or the data has fewer examples than parts.
        """
        if self.partition is None:
            if self.data is None and not self.held_out:
                warnings.warn(
                    "the plan has no data section: this worker trains on all {} examples, and so does "
                    "every other".format(len(labels)),
                    stacklevel=2,
                )
            return np.arange(len(labels), dtype=np.int64)
        return part_of(self.partition, labels)


@dataclass(frozen=True)
class Step:
    """What a training step is given.

    Attributes:
        params: the task's `Params`, from the plan's `train:` section.
        seed: derived from plan, run, round and worker.
        round: round number, from 1.
        progress: call with a fraction from 0 to 1 now and then; a worker that makes
            progress is never declared dead.
    """

    params: Any
    seed: int
    round: int
    progress: Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """The outcome of `train`: how many examples were used, and finite metrics."""

    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """The outcome of `evaluate`: how many examples were scored, and finite metrics."""

    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class TrainingTask:
    """Base class of training code that is not torch. `TorchTask` fills in most of it.

    `Params` is a frozen dataclass; the plan's `train:` section is checked against it
    (names, types, `__post_init__`) before a round is announced where the task is
    installed, and on the worker always.

    A task is made as `cls()`, without arguments; then `self.params` is set, before any
    other call. `load` and `model` may read it as `train` does.
    """

    @dataclass(frozen=True)
    class Params:
        """No parameters."""

    name: ClassVar[str] = ""
    params: Any

    def load(self, site: Site) -> Any:
        """Read the data. The result is kept: a new run reads again when code or folder have changed."""
        raise NotImplementedError(type(self).__name__ + " must define load(site)")

    def model(self, seed: int) -> Any:
        """Make a model with fresh weights."""
        raise NotImplementedError(type(self).__name__ + " must define model(seed)")

    def arrays(self, model: Any) -> Arrays:
        """The model's tensors by name, as numpy arrays that may share its memory, in a stable order."""
        raise NotImplementedError(type(self).__name__ + " must define arrays(model)")

    def set_arrays(self, model: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Put tensors back.

        Args:
            model: the model.
            arrays: names, shapes and dtypes as `arrays()` gave them. Each is copied when it is asked for,
                and the task may keep it.
        """
        raise NotImplementedError(type(self).__name__ + " must define set_arrays(model, arrays)")

    def train(self, model: Any, data: Any, step: Step) -> Trained:
        """Train the model in place on the data."""
        raise NotImplementedError(type(self).__name__ + " must define train(model, data, step)")

    def evaluate(self, model: Any, data: Any) -> Evaluated:
        """Score the model on the data."""
        raise NotImplementedError(type(self).__name__ + " must define evaluate(model, data)")

    def groups(self) -> Dict[str, str]:
        """How tensors travel, by fnmatch pattern of their names; the first match counts.

        `lossy` (the default) through the plan's codec, `exact` always dense (BatchNorm
        statistics), `local` never: it stays on the worker (personal layers).
        """
        return {}

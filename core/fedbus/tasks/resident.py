"""A task that stays in memory between rounds: its model, its data, and what never leaves the worker.

The trainer child holds one. Everything here is arrays in, arrays out; files and pipes are the child's.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from fedbus.tasks import vector
from fedbus.tasks.load import load_class
from fedbus.tasks.params import build_task
from fedbus.tasks.task import Arrays, Evaluated, Partition, Site, Step, Trained

if TYPE_CHECKING:
    from fedbus.tasks.vector import Row, Vector

# Data sets kept at once. A plain worker has one; a worker of many virtual nodes must not keep them all.
MAX_DATA = 4
# What an update's manifest can carry.
MAX_METRICS = 64
MAX_NAME = 64


_NO_FOLDER = (
    "site.data is None where the worker joined without --data, and where the evaluator asks for held-out data"
)


class Resident:
    """One task with one set of parameters."""

    def __init__(self, spec: str, params: Mapping[str, Any]) -> None:
        """Load the task.

        Args:
            spec: `module:attr`.
            params: the plan's `train:` section.

        Raises:
            LookupError: there is no such task.
            ImportError: it is not installed.
            ValueError: a parameter is wrong.
        """
        self.task = build_task(load_class(spec), params)
        self._model: Any = None
        self._data: OrderedDict[str, Any] = OrderedDict()
        self._fresh: Arrays = {}  # local tensors of a new model
        self._local: Dict[str, Arrays] = {}  # local tensors by site

    def init(self, seed: int) -> Tuple[List[Row], Arrays]:
        """Make a new model, forgetting local tensors: its table, and its tensors."""
        arrays = self._make(seed)
        self._local.clear()
        table = vector.table(arrays, self.task.groups())
        if vector.size(table) == 0:
            raise ValueError("the model has no element that travels: arrays() is empty or all of it is local")
        return table, arrays

    def train(
        self,
        site: Site,
        weights: Vector,
        table: Sequence[Row],
        seed: int,
        round: int,
        progress: Callable[[float], None],
        out: Callable[[], Vector],
    ) -> Trained:
        """Train from the given weights and write what changed.

        Args:
            site: where the data is.
            weights: the global model.
            table: its tensor table.
            seed: of this step; `random` and numpy's legacy functions are seeded with it as well.
            round: round number.
            progress: told fractions from 0 to 1.
            out: makes the vector for trained minus given weights; called once training is over.

        Raises:
            ValueError: the task's model or outcome is not usable; says what and why.
        """
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        data = self._load(site)
        self._place(site, weights, table, seed)
        trained = self.task.train(self._model, data, Step(self.task.params, seed, round, progress))
        arrays = self.task.arrays(self._model)
        self._check_table(arrays, table)
        vector.flatten(arrays, table, out(), base=weights)
        names = vector.local_names(arrays, self.task.groups())
        self._local[_owner(site)] = {name: np.array(arrays[name]) for name in names}
        return Trained(*_checked(trained, Trained))

    def evaluate(self, site: Site, weights: Vector, table: Sequence[Row]) -> Evaluated:
        """Score the given weights, with the site's own local tensors.

        Raises:
            ValueError: the task's model or outcome is not usable; says what and why.
        """
        random.seed(0)
        np.random.seed(0)
        data = self._load(site)
        self._place(site, weights, table, seed=0)
        return Evaluated(*_checked(self.task.evaluate(self._model, data), Evaluated))

    def _make(self, seed: int) -> Arrays:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        self._model = self.task.model(seed)
        arrays = self.task.arrays(self._model)
        names = vector.local_names(arrays, self.task.groups())
        self._fresh = {name: np.array(arrays[name]) for name in names}
        return arrays

    def _load(self, site: Site) -> Any:
        key = _key(site)
        if key not in self._data:
            try:
                self._data[key] = self.task.load(site)
            except TypeError as error:
                if site.data is None and "NoneType" in str(error):
                    raise ValueError("load(): {}; {}".format(error, _NO_FOLDER)) from error
                raise
            if len(self._data) > MAX_DATA:
                self._data.popitem(last=False)
        self._data.move_to_end(key)
        return self._data[key]

    def _place(self, site: Site, weights: Vector, table: Sequence[Row], seed: int) -> None:
        """Put the global weights and the site's local tensors into the model."""
        if self._model is None:
            self._check_table(self._make(seed), table)
        local = self._local.get(_owner(site), self._fresh)
        self.task.set_arrays(self._model, vector.Tensors(weights, table, local))

    def _check_table(self, arrays: Arrays, table: Sequence[Row]) -> None:
        """The task's own model must be the one that the federation trains."""
        ours = {row["name"]: row for row in vector.table(arrays, self.task.groups())}
        theirs = {row["name"]: dict(row, shape=list(row["shape"])) for row in table}
        for name in [*theirs, *ours]:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    "tensor {!r} is {} here, but {} in the federation's model".format(
                        name, _describe(ours.get(name)), _describe(theirs.get(name))
                    )
                )


def site_from(value: Mapping[str, Any]) -> Site:
    """The site that `dataclasses.asdict` wrote as plain JSON."""
    partition = value["partition"]
    return Site(**{**value, "partition": None if partition is None else Partition(**partition)})


def _key(site: Site) -> str:
    return repr(sorted(asdict(site).items()))


def _owner(site: Site) -> str:
    """Whose local tensors: held-out data is scored with those of the same site."""
    return repr((site.data, site.partition))


def _describe(row: Optional[Row]) -> str:
    return "missing" if row is None else "{} {}, {}".format(row["dtype"], row["shape"], row["group"])


def _checked(outcome: Any, kind: type) -> Tuple[int, Dict[str, float]]:
    """The number of examples and the metrics as plain values."""
    if not isinstance(outcome, kind):
        raise ValueError("must return {}, returned {}".format(kind.__name__, type(outcome).__name__))
    count: Any = getattr(outcome, "num_examples", None)
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError("num_examples must be a whole number from 1, got {!r}".format(count))
    metrics: Mapping[str, Any] = getattr(outcome, "metrics", {})
    if len(metrics) > MAX_METRICS:
        raise ValueError("at most {} metrics travel, got {}".format(MAX_METRICS, len(metrics)))
    found: Dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise ValueError("metric {!r}: a name has 1 to {} characters".format(name, MAX_NAME))
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError("metric {!r} must be a number, got {!r}".format(name, value)) from None
        if not math.isfinite(found[name]):
            raise ValueError("metric {!r} must be finite, got {}".format(name, found[name]))
    return int(count), found

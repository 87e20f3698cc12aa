"""A run of federated learning in one process, without a broker: what a codec costs in rounds and bytes.

Task, parts of the data, codec, error feedback and fold are the product's own code; only the
messages are left out. Their bytes are counted: each update is the manifest that would be sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus.rounds.planning import derive_seed
from fedbus.strategies.fedavg import FedAvg
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Partition, Site
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec, UpdateManifest
from fedbus_worker.tasks.mnist5k import Mnist5k

TASK = f"{Mnist5k.__module__}:{Mnist5k.__name__}"
NODES, ALPHA = 10, 0.3
LEARNING_RATE = 0.002  # a fifth of the default: with that all is over in 7 rounds, too few to compare
TARGET, SMOOTHED = 0.90, 3
DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Learned:
    """What it took to reach the target; None where it was not reached."""

    rounds: int | None
    mb: float
    accuracy: float


class Nodes:
    """Ten clients with skewed parts of mnist5k, and the held-out images. Data is read once."""

    def __init__(self, seed: int) -> None:
        self.plan = Plan.model_validate(
            {
                "task": "mnist5k",
                "seed": seed,
                "data": {"partition": "dirichlet", "alpha": ALPHA, "parts": NODES},
                "train": {"lr": LEARNING_RATE},
            }
        )
        self.sites = [
            Site(partition=Partition(kind="dirichlet", parts=NODES, id=part, seed=seed, alpha=ALPHA))
            for part in range(NODES)
        ]
        self.clients = [Resident(TASK, self.plan.train) for _ in self.sites]
        self.table, arrays = self.clients[0].init(seed)
        specs = [TensorSpec.model_validate(row) for row in self.table]
        self.grid = Grid.of(specs)
        self.weights = np.concatenate([np.ravel(arrays[spec.name]) for spec in specs]).astype(np.float32)
        self._judge = Resident(TASK, self.plan.train)

    def train(self, node: int, weights: Vector, number: int) -> tuple[Vector, int]:
        """One client's difference and its number of examples."""
        delta = np.empty(self.grid.size, np.float32)
        seed = derive_seed(self.plan, number, f"part-{node}")
        trained = self.clients[node].train(
            self.sites[node], weights, self.table, seed, number, lambda _: None, lambda: delta
        )
        return delta, trained.num_examples

    def accuracy(self, weights: Vector) -> float:
        """On the held-out images."""
        return self._judge.evaluate(Site(held_out=True), weights, self.table).metrics["accuracy"]


def learn(nodes: Nodes, framing: Framing, most_rounds: int) -> Learned:
    """Train until the mean accuracy of three rounds reaches the target.

    Args:
        nodes: clients and first weights.
        framing: of the codec of updates; models go back as they are.
        most_rounds: then it is given up.
    """
    weights, mean = nodes.weights.copy(), np.empty_like(nodes.weights)
    lost = [np.zeros_like(weights) for _ in nodes.clients]
    fold = FedAvg()
    sent, accuracies = 0, list[float]()
    for number in range(1, most_rounds + 1):
        fold.start(weights.size)
        for node in range(NODES):
            delta, examples = nodes.train(node, weights, number)
            sent += _send(nodes, framing, delta, lost[node], examples)
            fold.add(0, delta, examples)
            fold.counted(examples)
        fold.finish(0, mean)
        weights += mean
        accuracies.append(nodes.accuracy(weights))
        if number >= SMOOTHED and fmean(accuracies[-SMOOTHED:]) >= TARGET:
            return Learned(number, sent / NODES / 1e6, accuracies[-1])
    return Learned(None, sent / NODES / 1e6, accuracies[-1])


def _send(nodes: Nodes, framing: Framing, delta: Vector, lost: Vector, examples: int) -> int:
    """Put what the receiver gets into `delta`, what it lacks into `lost`; returns the messages' bytes."""
    scratch, chunks = np.empty_like(delta), []
    for span in nodes.grid.spans:
        place = slice(span.offset, span.end)
        if framing.feedback:
            lost[place] += delta[place]
            chunks.append(framing.encode_and_subtract(span, lost[place], scratch))
        else:
            chunks.append(framing.encode(span, delta[place]))
        framing.decode(chunks[-1], chunk_digest(chunks[-1]), span, delta[place])
    manifest = UpdateManifest(
        run="run-0001", round=1, worker="worker-1", attempt="0123abcd", plan=DIGEST, base=DIGEST,
        codec=framing.name, num_examples=examples, metrics={"loss": 0.5, "accuracy": 0.5},
        chunks=[chunk_digest(chunk) for chunk in chunks], size_bytes=sum(map(len, chunks)),
        body=chunks[0] if len(chunks) == 1 else None,
    )  # fmt: skip
    return len(manifest.pack()) + (0 if len(chunks) == 1 else manifest.size_bytes)

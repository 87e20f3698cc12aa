"""A ServerApp with the stock FedAvg, which writes down when each round begins and what came back."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class MarkedFedAvg(FedAvg):
    """FedAvg of all clients, without evaluation."""

    def __init__(self, marks: Path, clients: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_available_nodes=clients,
        )
        self._marks = marks

    def mark(self, event: str, **more: Any) -> None:
        """Write one line."""
        with self._marks.open("a") as file:
            file.write(json.dumps({"at": time.time(), "event": event, **more}) + "\n")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A round begins."""
        self.mark("round")
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """The replies are here."""
        replies = list(replies)
        errors = sorted({str(reply.error.reason)[:100] for reply in replies if reply.has_error()})
        good = sum(not reply.has_error() for reply in replies)
        self.mark("replies", round=server_round, replies=good, errors="; ".join(errors))
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, from a model of random numbers: equal ones would travel as one chunk."""
    config = context.run_config
    strategy = MarkedFedAvg(Path(str(config["marks"])), int(config["clients"]))
    model = np.random.default_rng(0).standard_normal(int(config["elements"]), dtype=np.float32)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([model]), num_rounds=int(config["rounds"]))
    strategy.mark("end")

"""A user's own task, as a module in the current folder: a random walk that keeps what it added.

So a test can add it up by itself. Labels of the worker steer it: `name` and `examples` are what it says of
itself, `broken` is a round in which it fails, `how` in what way; `slow` is how many seconds longer it
takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ELEMENTS = 300_000  # two chunks
TASK = "walk_for_tests:Walk"
WALK = """
import os, signal, time
from dataclasses import dataclass
import numpy as np
from fedbus import Evaluated, Trained, TrainingTask

class Walk(TrainingTask):
    @dataclass(frozen=True)
    class Params:
        elements: int

    def load(self, site):
        return site.labels

    def model(self, seed):
        return {"w": np.random.default_rng(seed).normal(size=self.params.elements).astype(np.float32)}

    def arrays(self, model):
        return model

    def set_arrays(self, model, arrays):
        model.update(arrays)

    def train(self, model, labels, step):
        with open(f"{labels['name']}.{step.round}.pid", "w") as file:
            file.write(str(os.getpid()))
        if labels.get("broken") == str(step.round):
            self.break_(labels.get("how"))
        time.sleep(float(labels.get("slow", 0)))
        before = model["w"].copy()
        model["w"] += np.random.default_rng(step.seed).normal(size=len(before)).astype(np.float32)
        np.save(f"{labels['name']}.{step.round}.npy", model["w"] - before)
        return Trained(int(labels["examples"]), {"examples": float(labels["examples"])})

    def break_(self, how):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        if how == "allocates":
            np.zeros(1 << 55, np.uint8)
        if how == "bare":
            raise MemoryError
        raise OSError("the disk of this host is gone")

    def evaluate(self, model, labels):
        return Evaluated(1, {})
"""


def write_walk(folder: Path) -> None:
    """Put the task where a trainer child that starts in this folder finds it."""
    (folder / "walk_for_tests.py").write_text(WALK)


def walk(**plan: Any) -> dict[str, Any]:
    """A plan for it and three workers."""
    return {"task": TASK, "train": {"elements": ELEMENTS}, "seed": 7, "cohort": {"min": 3}} | plan

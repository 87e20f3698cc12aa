"""What each codec saves and costs: `make bench-codecs`. Bytes and error, speed, and rounds to an accuracy."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from fedbus.codec import Vector, codec
from fedbus.codec.framing import Framing
from fedbus.codec.grid import CHUNK_ELEMENTS
from fedbus.codec.measure import measure
from learning import ALPHA, NODES, TARGET, Learned, Nodes, learn
from tables import machine, put, table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NAME = "make bench-codecs"
SEEDS = (0, 1, 2)
MOST_ROUNDS = 60
REPEATS = 25

Coded = tuple[str, dict[str, Any]]
MEASURED: dict[str, Coded] = {
    "dense": ("dense", {}),
    "bf16": ("bf16", {}),
    "int8": ("int8", {}),
    "ecq": ("ecq", {}),
    "ecq, step 4": ("ecq", {"step": 4}),
    "eden, 4 bits": ("eden", {"bits": 4}),
    "eden, 2 bits": ("eden", {"bits": 2}),
    "eden": ("eden", {}),
    "topk": ("topk", {}),
    "topk, signs": ("topk", {"values": "sign"}),
}
LEARNED = [name for name in MEASURED if name not in ("eden, 4 bits", "eden, 2 bits")]


def main() -> int:
    """Measure, print, and with --write keep the tables in docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed; writes nothing")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    seeds = SEEDS[:1] if given.quick else SEEDS
    federations = {seed: Nodes(seed) for seed in seeds}
    speeds = _speeds(_update(federations[0]))
    learned = {name: [_learned(name, federations[seed], seed) for seed in seeds] for name in LEARNED}
    text = "\n\n".join(
        (
            f"Measured on {datetime.now(UTC).date()} with `python benchmarks/coding.py --write`. {machine()}",
            "**Bytes, error and speed** on one chunk, 258,048 elements: three clients' first updates of "
            "mnist5k, one behind the other. NMSE: squared error over squared values. GB/s of "
            f"float32 per CPU second of one core, median of {REPEATS}.",
            speeds,
            f"**Rounds and bytes to an accuracy of {TARGET:.2f}** on mnist5k: {NODES} clients, Dirichlet "
            f"{ALPHA}, the mean over three rounds, {len(seeds)} seeds. MB are what one client sent until "
            "then, manifests included.",
            _learning(learned, seeds),
        )
    )
    print(text)
    if given.write and not given.quick:
        put(text, PAGE, NAME)
    return 0


def _update(nodes: Nodes) -> Vector:
    parts = [nodes.train(node, nodes.weights, 1)[0] for node in range(-(-CHUNK_ELEMENTS // nodes.grid.size))]
    return np.concatenate(parts)[:CHUNK_ELEMENTS]


def _speeds(x: Vector) -> str:
    rows = []
    for name, (kind, params) in MEASURED.items():
        made = codec(kind, params)
        found = measure(made, x)
        body, blosc = made.encode(x)
        out, view = np.empty_like(x), memoryview(body)
        encode = _gigabytes_per_s(x, partial(made.encode, x))
        decode = _gigabytes_per_s(x, partial(made.decode, view, blosc, out))
        rows.append([name, f"{found.ratio:.1f}", f"{found.nmse:.2g}", f"{encode:.2f}", f"{decode:.2f}"])
    return table(["codec", "ratio", "NMSE", "encode GB/s", "decode GB/s"], rows, 1)


def _gigabytes_per_s(x: Vector, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return x.nbytes / median(seconds) / 1e9


def _learned(name: str, nodes: Nodes, seed: int) -> Learned:
    kind, params = MEASURED[name]
    found = learn(nodes, Framing(kind, params), MOST_ROUNDS)
    print(f"{name}, seed {seed}: {found.rounds} rounds, {found.mb:.3f} MB", file=sys.stderr)
    return found


def _learning(learned: dict[str, list[Learned]], seeds: tuple[int, ...]) -> str:
    dense_rounds = fmean(each.rounds or MOST_ROUNDS for each in learned["dense"])
    dense_mb = fmean(each.mb for each in learned["dense"])
    rows = []
    for name, runs in learned.items():
        rounds, mb = fmean(each.rounds or MOST_ROUNDS for each in runs), fmean(each.mb for each in runs)
        each = [str(one.rounds or "never") for one in runs]
        against = [f"{rounds / dense_rounds:.2f}", f"{mb:.3f}", f"1/{dense_mb / mb:.0f}"]
        rows.append([name, *each, f"{rounds:.1f}", *against])
    head = ["codec", *(f"seed {seed}" for seed in seeds), "mean rounds", "times dense's", "MB per client"]
    return table([*head, "of dense's"], rows, 1)


if __name__ == "__main__":
    sys.exit(main())

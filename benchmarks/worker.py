"""What a worker uses: CPU while it has nothing to do, and anonymous memory with a large model (Linux only).

    python benchmarks/worker.py --write      # a part of `make bench`

Anonymous memory is what no file stands behind, so the system cannot take it back. It is sampled while rounds
run, from when the trainers know their task: what Python, numpy and torch take themselves is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rounds import Setting, finish, plan_of, standing
from tables import machine, put, table
from usage import KINDS, PROC, KindUsage, compare, snapshot

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
WORKERS, ELEMENTS, ROUNDS = 4, 25_000_000, 4
CODECS = ("dense", "ecq")
SAMPLE_S = 0.02
SETTLE_S = 5.0
TIMEOUT_S = 180.0
PARTS = ("agent", "trainer")

Anonymous = dict[int, int]  # bytes, by process id


@dataclass(frozen=True, slots=True)
class Memory:
    """Anonymous bytes that the largest agent and trainer took at the most, above what they had before."""

    agent: int
    trainer: int


def main() -> int:
    """Measure, print, and write where that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS", help="how long to watch rest")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCS.name}")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory and CPU are read from /proc, so this runs on Linux only")
    resting, memory = asyncio.run(_measure(options.idle))
    command = shlex.join(["python", "benchmarks/worker.py", *sys.argv[1:]])
    text = f"Measured with `{command}`. {machine()}\n\n{render(resting, options.idle, memory)}"
    print(text)
    if options.write:
        put(text, DOCS, "make bench: a worker")
    return 0


async def _measure(idle_s: float) -> tuple[dict[str, KindUsage], dict[str, Memory]]:
    async with standing(WORKERS, TIMEOUT_S) as (stack, federation, bus):
        await finish(stack, federation, bus, plan_of(_setting(25_000, "ecq"), 2), "small", TIMEOUT_S)
        await asyncio.sleep(SETTLE_S)
        before, began = _anonymous(), snapshot()
        await asyncio.sleep(idle_s)
        resting = compare(began, snapshot())
        memory = {}
        for codec in CODECS:
            async with asyncio.TaskGroup() as group:
                over = asyncio.Event()
                sampling = group.create_task(_sample(before, over))
                plan = plan_of(_setting(ELEMENTS, codec), ROUNDS)
                await finish(stack, federation, bus, plan, codec, TIMEOUT_S)
                over.set()
            memory[codec] = sampling.result()
    return resting, memory


def _setting(elements: int, codec: str) -> Setting:
    return Setting(codec, codec, WORKERS, elements, ROUNDS, None, codec)


async def _sample(before: Mapping[str, Anonymous], over: asyncio.Event) -> Memory:
    most: defaultdict[str, int] = defaultdict(int)
    while not over.is_set():
        for kind, sizes in _anonymous().items():
            # A trainer that is new began with less: then more is counted, not less.
            least = min(before[kind].values())
            for pid, size in sizes.items():
                most[kind] = max(most[kind], size - before[kind].get(pid, least))
        await asyncio.sleep(SAMPLE_S)
    return Memory(most["agent"], most["trainer"])


def _anonymous() -> dict[str, Anonymous]:
    """Anonymous bytes of the agents and trainers."""
    found: dict[str, Anonymous] = {kind: {} for kind in PARTS}
    for pid, process in snapshot().items():
        if process.kind in PARTS:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                lines = (PROC / str(pid) / "status").read_text().splitlines()
                size = next(line.split()[1] for line in lines if line.startswith("RssAnon:"))
                found[process.kind][pid] = int(size) * 1024
    return found


def render(resting: Mapping[str, KindUsage], idle_s: float, memory: Mapping[str, Memory]) -> str:
    """Both tables."""
    rest = [
        [kind, str(used.count), f"{100 * used.cpu_s / idle_s / used.count:.3f}"]
        for kind in KINDS
        if (used := resting.get(kind)) is not None
    ]
    model = 4 * ELEMENTS
    held = [
        [codec, *(f"{size / model:.2f}" for size in (each.agent, each.trainer, each.agent + each.trainer))]
        for codec, each in memory.items()
    ]
    return "\n\n".join(
        [
            f"**At rest**, over {idle_s:g} s with {WORKERS} workers and no run: share of a core that one "
            "process of a kind uses.",
            table(["kind", "processes", "% of a core"], rest, 1),
            f"**Anonymous memory** of the largest agent and of the largest trainer in rounds of "
            f"{model // 10**6} MB, in models of that size, sampled every {1000 * SAMPLE_S:g} ms.",
            table(["codec", "agent", "trainer", "together"], held, 1),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

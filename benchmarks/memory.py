"""Memory of each kind of process over many rounds: a table, and a graph as SVG.

    python benchmarks/memory.py --write      # `make bench-memory`: 500 rounds of 4 workers, a 4 MB model

Exits 1 when a process ends larger than it was in the run's second quarter, by more than a tenth and 8 MiB.
The first quarter is left out: the broker keeps in memory what was written last, and fills that first.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from rounds import Setting, finish, plan_of, standing
from tables import machine, put
from usage import KINDS, snapshot

DOCS = Path(__file__).parents[1] / "docs"
EVERY_S = 0.5
MIB = 1 << 20
GROWTH, SLACK_MIB = 1.1, 8.0
COLOURS = ("#1f5faa", "#b3541e", "#2e7d32", "#7b1fa2", "#c2185b", "#00838f", "#6d4c41")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 56, 110, 16, 36

Series = dict[str, list[float]]  # MiB of the largest process of a kind, by sample


def main() -> int:
    """Run, print, and write where that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--elements", type=int, default=1_000_000, help="float32 numbers of the model")
    parser.add_argument("--write", action="store_true", help="put table and graph into docs/")
    options = parser.parse_args()
    setting = Setting("memory", "memory", options.workers, options.elements, options.rounds, None)
    began = time.monotonic()
    series = asyncio.run(_measure(setting))
    took = time.monotonic() - began
    size = f"{4 * options.elements / 1e6:g} MB"
    setup = f"{options.rounds} rounds of {options.workers} workers, a model of {size}"
    told = f"{setup}, in {took:.0f} s. {machine()}"
    text = f"{told}\n\n{render(series)}"
    print(text)
    if options.write:
        (DOCS / "memory.svg").write_text(draw(series, options.rounds))
        put(
            f"{text}\n\n![Memory of each kind of process over the rounds](memory.svg)",
            DOCS / "benchmarks.md",
            "make bench-memory",
        )
    grown = [kind for kind, values in series.items() if is_growing(values)]
    if grown:
        print(f"growing: {', '.join(grown)}", file=sys.stderr)
    return 1 if grown else 0


async def _measure(setting: Setting) -> Series:
    async with standing(setting.workers, 120.0) as (stack, federation, bus):
        await finish(stack, federation, bus, plan_of(setting, 3), "warm-up", 120.0)
        samples: list[dict[str, float]] = []
        sampling = asyncio.create_task(_sample(samples))
        plan = {**plan_of(setting, setting.rounds), "model": {"from": "warm-up"}}
        await finish(stack, federation, bus, plan, "measured", 1200.0)
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
    kinds = [kind for kind in KINDS if kind in samples[0] and kind != "watchdog"]
    return {kind: [sample[kind] for sample in samples] for kind in kinds}


async def _sample(samples: list[dict[str, float]]) -> None:
    while True:
        largest: dict[str, float] = {}
        for process in snapshot().values():
            largest[process.kind] = max(largest.get(process.kind, 0.0), process.rss / MIB)
        samples.append(largest)
        await asyncio.sleep(EVERY_S)


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    size = max(1, len(values) // 4)
    return median(values[size : 2 * size]), median(values[-size:])


def is_growing(values: Sequence[float]) -> bool:
    """Whether the end is larger than the beginning by more than measuring explains."""
    second, last = quarters(values)
    return last > max(second * GROWTH, second + SLACK_MIB)


def render(series: Mapping[str, Sequence[float]]) -> str:
    """A Markdown table."""
    lines = ["| kind | second quarter MiB | last quarter MiB | largest MiB |", "| --- | ---: | ---: | ---: |"]
    for kind, values in series.items():
        second, last = quarters(values)
        lines.append(f"| {kind} | {second:.1f} | {last:.1f} | {max(values):.1f} |")
    return "\n".join(lines)


def draw(series: Mapping[str, Sequence[float]], rounds: int) -> str:
    """The samples as lines over the rounds, as SVG."""
    top = max(max(values) for values in series.values()) * 1.08
    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000) if top / step <= 8 or step == 1000)

    def y_of(mib: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - mib / top)

    right = WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for mib in range(0, int(top) + 1, step):
        y = y_of(mib)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{mib}</text>')
    for quarter in range(5):
        x = LEFT + (right - LEFT) * quarter / 4
        parts.append(
            f'<text x="{x:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{rounds * quarter // 4}</text>'
        )
    parts.append(f'<text x="{LEFT - 44}" y="{TOP + 4}">MiB</text>')
    parts.append(f'<text x="{right + 8}" y="{HEIGHT - 14}">rounds</text>')
    labels: list[float] = []
    for (kind, values), colour in zip(
        sorted(series.items(), key=lambda item: item[1][-1]), COLOURS, strict=False
    ):
        width = (right - LEFT) / max(1, len(values) - 1)
        points = " ".join(f"{LEFT + i * width:.1f},{y_of(mib):.1f}" for i, mib in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        y = min([y_of(values[-1]) + 4, *(label - 13 for label in labels[-1:])])
        labels.append(y)
        parts.append(f'<text x="{right + 8}" y="{y:.1f}" fill="{colour}">{kind}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())

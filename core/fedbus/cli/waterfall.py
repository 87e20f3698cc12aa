"""`fedbus round trace`: one round over time, across all parties."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedbus.api.federation import Federation
from fedbus.api.refs import read_round_ref
from fedbus.api.traces import Trace
from fedbus.cli.output import (
    console,
    dir_option,
    json_option,
    print_json,
    reporting,
    url_option,
    with_federation,
)
from fedbus.telemetry.allowed import STOPPED
from fedbus.telemetry.tree import Row, coverage, rows

_COLOURS = {"planner": "cyan", "aggregator": "magenta", "evaluator": "yellow", "worker": "green"}
# Name, party and duration take about 50 columns; the bars have the rest.
BESIDE_BARS, LEAST_BAR, MOST_BAR = 52, 20, 100


@click.command()
@click.argument("ref")
@dir_option
@url_option
@json_option
@reporting
def trace(ref: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Draw one round (RUN/N) over time: what each party did, when, and what failed."""
    which = read_round_ref(ref, "trace", "a trace is of one round")

    async def work(federation: Federation) -> Trace:
        return await federation.trace(which.run, which.number)

    found = with_federation(folder, url, work)
    if as_json:
        print_json(found.report())
    else:
        out = console()
        out.print(waterfall(found, out.width))


def waterfall(found: Trace, columns: int) -> RenderableType:
    """The trace as a table of bars, with a line above and failures below, in full."""
    lines = rows(found.tree)
    if not lines:
        return Text(f"{found.ref}: no span has arrived yet")
    bars = max(LEAST_BAR, min(MOST_BAR, columns - BESIDE_BARS))
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("span", no_wrap=True)
    table.add_column("who", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=bars)
    for row in lines:
        # Names were checked, other words are text and never markup.
        name = Text("  " * row.depth + _name(row), "bold red" if row.span.error else "")
        table.add_row(name, Text(row.span.party), duration(row.duration_s), _bar(row, bars))
    return Group(_headline(found), table, *_failures(lines))


def duration(seconds: float) -> str:
    """A span's length as people read it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _headline(found: Trace) -> Text:
    root = found.tree.root
    if root is None:
        return Text(f"{found.ref} is under way; trace {found.trace_id}")
    counts = [f"{root.attributes.get('accepted', 0)} of {root.attributes.get('cohort', 0)} updates count"]
    counts += [f"{root.attributes[key]} {key}" for key in ("rejected", "lost") if root.attributes.get(key)]
    told = f"{found.ref}: {duration(root.end - root.start)}, {', '.join(counts)}; trace {found.trace_id}"
    share = coverage(found.tree)
    return Text(told + (f"; {share:.0%} of its time is explained" if share < 0.9 else ""))


def _name(row: Row) -> str:
    """A service's span that is about one worker says which, and one that was broken off that it was."""
    about = row.span.attributes.get("worker")
    name = f"{row.span.name} {about}" if about and row.span.worker is None else row.span.name
    return f"{name} ({STOPPED})" if row.span.attributes.get("code") == STOPPED else name


def _bar(row: Row, columns: int) -> Text:
    left = min(columns - 1, int(row.left * columns))
    length = max(1, min(columns - left, round(row.width * columns)))
    colour = "red" if row.span.error else _COLOURS.get(row.span.service, "white")
    return Text(" " * left).append("█" * length if row.width * columns >= 0.5 else "▏", colour)


def _failures(lines: list[Row]) -> list[Text]:
    failed = [row.span for row in lines if row.span.error]
    return [Text(f"{s.name} of {s.attributes.get('worker', s.party)}: {s.error}", "red") for s in failed]

"""`fedbus round explain`: where the time of a round went, who was last, and what would have helped."""

from __future__ import annotations

from pathlib import Path

import click
from fedbus_schemas.report import ExplainReport
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedbus.api.federation import Federation
from fedbus.api.refs import read_round_ref
from fedbus.cli.output import (
    console,
    dir_option,
    json_option,
    print_json,
    reporting,
    url_option,
    with_federation,
)
from fedbus.cli.waterfall import duration
from fedbus.telemetry.explaining import PHASES

BAR = 20
MOST_WORKERS = 30
LEAST_SHARE = 0.005  # of the round: shorter steps are put together
# What the words of a path mean, where they do not say it themselves.
_MEANING = {
    "announce": "until it began",
    "between": "between its steps",
    "verify": "until its update was accepted or refused",
    "work": "no spans of it are there: not split up",
    "wait": "waited for it",
    "close": "until the round was closed",
    "fold": "until the model was complete",
    "publish-model": "until the model was stored",
    "finish": "until the round was over",
}


@click.command("explain")
@click.argument("ref")
@dir_option
@url_option
@json_option
@reporting
def explain(ref: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Say where the time of one round (RUN/N) went, who was last, and what would have made it faster."""
    which = read_round_ref(ref, "explain", "one round is explained")

    async def work(federation: Federation) -> ExplainReport:
        return await federation.explain(which.run, which.number)

    found = with_federation(folder, url, work)
    if as_json:
        print_json(found)
    else:
        console().print(explained(found))


def explained(found: ExplainReport) -> RenderableType:
    """The explanation as text: a headline, the critical path, the members, and what would have helped."""
    return Group(_headline(found), "", _path(found), "", _workers(found), *_hints(found))


def _headline(found: ExplainReport) -> Text:
    if found.state == "open":
        told = f"{found.run}/{found.round} is open since {duration(found.seconds)}"
        about = f", and waits for {found.last}" if found.last else ""
    else:
        told = f"{found.run}/{found.round} {found.state}: {duration(found.seconds)}"
        about = f"; {found.last} was last" if found.last else ""
    if found.last_did:
        about += f", most of its time in {found.last_did}"
    return Text(told + about + (f" [{found.code}] {found.reason}" if found.reason else ""))


def _path(found: ExplainReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), title="critical path", title_justify="left")
    for name, cells in (("step", [s.name for s in found.path]), ("who", [s.party for s in found.path])):
        table.add_column(name, no_wrap=True, min_width=max(map(len, cells), default=0))
    for name, width in (("took", 8), ("share", 5)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("")
    short = [step for step in found.path if step.share < LEAST_SHARE]
    for step in found.path:
        if step.share >= LEAST_SHARE:
            bar = Text("█" * max(1, round(step.share * BAR)), "cyan")
            bar.append(f" {_MEANING[step.name]}" if step.name in _MEANING else "", "dim")
            table.add_row(Text(step.name), Text(step.party), duration(step.seconds), f"{step.share:.0%}", bar)
    if short:
        took, share = sum(step.seconds for step in short), sum(step.share for step in short)
        table.add_row(f"{len(short)} others", "", duration(took), f"{share:.0%}", "")
    return table


def _workers(found: ExplainReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), title="members, the slowest first")
    table.title_justify = "left"
    table.add_column("worker", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    done = [phase for phase in PHASES if any(phase in each.phases for each in found.workers)]
    for name in ("after", *done):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    ordered = sorted(found.workers, key=lambda w: float("inf") if w.settled_s is None else w.settled_s)[::-1]
    for each in ordered[:MOST_WORKERS]:
        cells = [duration(each.phases[phase]) if phase in each.phases else "-" for phase in done]
        after = "-" if each.settled_s is None else duration(max(0.0, each.settled_s))
        clock = f"its clock is {duration(abs(each.clock_s))} {'ahead' if each.clock_s > 0 else 'behind'}"
        table.add_row(
            Text(each.worker), each.outcome, after, *cells, Text(clock if each.clock_s else "", "dim")
        )
    if len(ordered) > MOST_WORKERS:
        table.add_row(f"and {len(ordered) - MOST_WORKERS} more: --json has all")
    return table


def _hints(found: ExplainReport) -> list[Text]:
    if not found.hints:
        return []
    return [
        Text("\nwhat would have made it faster"),
        *[Text(f"  {h.reason} [{h.code}]") for h in found.hints],
    ]

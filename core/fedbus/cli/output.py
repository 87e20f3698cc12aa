"""How the command line prints: one JSON document with `--json`, else tables; errors with code and hint."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from fedbus_schemas.report import ErrorBody, ErrorReport, RoundReport, RunReport, RunSummary
from pydantic import BaseModel
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedbus.api.federation import Federation
from fedbus.base.errors import FedbusError
from fedbus.runtime.identity import credentials_of

P = ParamSpec("P")
R = TypeVar("R")

_CA = f"{__name__}.ca"  # where `--ca` waits for `with_federation`
DIGEST = 12  # characters of a digest; all of it is in --json
MOST_LINES = 30  # of workers that were left out, lost or refused in a run

dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of the local stack.  [default: ./.fedbus]",
)
_url_option = click.option(
    "--url", help="Broker, with credentials: nats://user:password@host:4222, or tls://"
)
_ca_option = click.option(
    "--ca",
    metavar="FILE",
    help="Authority of the broker's certificate; demands TLS.",
    expose_value=False,
    callback=lambda context, _, value: context.meta.update({_CA: value}),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def url_option(command: Callable[P, R]) -> Callable[P, R]:
    """`--url`, which the command takes, and `--ca`, which `with_federation` does."""
    return _url_option(_ca_option(command))


def console() -> Console:
    """Where people read: stdout. Piped, lines are not folded."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_json(value: BaseModel | list[Any]) -> None:
    """Print a document; a list as `{"items": [...]}`."""
    if isinstance(value, BaseModel):
        click.echo(value.model_dump_json(indent=2))
    else:
        items = ",\n".join(item.model_dump_json(indent=2) for item in value)
        click.echo(f'{{"items": [{items}]}}')


def print_list(found: list[R], as_json: bool, table: Callable[[list[R]], Table], none: str) -> None:
    """Print what a list command found; `none` is said where that is nothing."""
    if as_json:
        print_json(found)
    elif found:
        console().print(table(found))
    else:
        click.echo(none)


def reporting(run: Callable[P, R]) -> Callable[P, R]:
    """Print a FedbusError as people or programs read it, and exit with its family's code."""

    @wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except FedbusError as error:
            if kwargs.get("as_json"):
                body = ErrorBody(code=error.code, message=error.message, hint=error.hint)
                click.echo(ErrorReport(error=body).model_dump_json())
            else:
                click.echo(f"error[{error.code}]: {error.message}", err=True)
                if error.hint:
                    click.echo(f"hint: {error.hint}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapped


def with_federation(folder: Path | None, url: str | None, work: Callable[[Federation], Awaitable[R]]) -> R:
    """Connect as the operator, do something, disconnect."""
    credentials = credentials_of("operator", folder, url, click.get_current_context().meta[_CA])

    async def go() -> R:
        async with await Federation.connect(credentials) as federation:
            return await work(federation)

    return asyncio.run(go())


def run_details(report: RunReport, *, why: bool = True) -> Group:
    """A run: its state, a table of its rounds, and who was left out, lost or refused, and why.

    Args:
        report: the run.
        why: with the reason of its state.
    """
    # Reasons carry peers' words: they are text, and never markup.
    lines = mishaps(report)
    if (more := len(lines) - MOST_LINES) > 0:
        lines = [f"{more} more before these: fedbus round show {report.run}/N", *lines[more:]]
    return Group(run_table(report, why=why), *[Text(line) for line in lines])


def run_table(report: RunReport, *, why: bool = True) -> Group:
    """A run's state, and its rounds, a line each."""
    said = f"{report.run}: {report.state}" + (f": {because(report)}" if report.reason and why else "")
    return Group(Text(said), *([_round_table(report)] if report.rounds else []))


def because(report: RunReport | RoundReport) -> str:
    """The reason of what needs one, and its code."""
    return f"{report.reason} [{report.code}]" if report.code else str(report.reason)


def mishaps(report: RunReport) -> list[str]:
    """A line for each worker that was left out, lost or refused. One that stays left out is named once."""
    lines: list[str] = []
    told: set[tuple[str, str]] = set()
    for r in report.rounds:
        out = [each for each in r.excluded if (each.worker, each.code) not in told]
        told = {(each.worker, each.code) for each in r.excluded}
        for label, items in (("excluded", out), ("lost", r.lost), ("rejected", r.rejected)):
            where = f"{report.run}/{r.round}: "
            lines += [f"{where}{item.worker} {label}: {item.reason} [{item.code}]" for item in items]
    return lines


def _round_table(report: RunReport) -> Table:
    """Columns that say nothing are left out; metrics are those on held-out data."""
    rounds = report.rounds
    names = sorted({name for r in rounds for name in r.metrics if not name.startswith("train_")})
    columns: dict[str, list[str]] = {
        "round": [str(r.round) for r in rounds],
        "state": [r.state if r.state != "finished" else "" for r in rounds],
        "updates": [f"{r.accepted}/{len(r.cohort)}" for r in rounds],
        "lost": [str(len(r.lost) or "") for r in rounds],
        "rejected": [str(len(r.rejected) or "") for r in rounds],
        "seconds": ["" if r.seconds is None else f"{r.seconds:.2f}" for r in rounds],
        "MB up": [f"{r.bytes_up / 1e6:.2f}" for r in rounds],
        "MB down": [f"{r.bytes_down / 1e6:.2f}" for r in rounds],
        **{name: [f"{r.metrics[name]:.4f}" if name in r.metrics else "" for r in rounds] for name in names},
    }
    shown = {name: cells for name, cells in columns.items() if any(cells) or name == "round"}
    table = Table()
    for name in shown:
        table.add_column(name, justify="left" if name == "state" else "right")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table


def size(count: int) -> str:
    """Bytes in the unit that shows them best."""
    return f"{count / 1e3:.1f} KB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def run_list(summaries: list[RunSummary]) -> Table:
    """All runs, a line each."""
    table = Table()
    for column in ("run", "state", "task", "rounds", "metrics", "model"):
        table.add_column(column, no_wrap=column not in ("task", "state"))
    for s in summaries:
        metrics = " ".join(f"{k}={v:.4f}" for k, v in s.metrics.items() if not k.startswith("train_"))
        table.add_row(
            s.run, s.state, s.task, f"{s.rounds_done}/{s.rounds}", metrics, (s.model or "")[:DIGEST]
        )
    return table


def round_details(r: RoundReport) -> Table:
    """One round, a line per fact."""
    table = Table(show_header=False, title=f"round {r.round}")
    table.add_row("state", escape(r.state + (f": {because(r)}" if r.reason else "")))
    table.add_row("cohort", ", ".join(r.cohort))
    for u in r.accepted_updates:
        table.add_row("accepted", f"{u.worker}: {u.weight:g} examples, {size(u.bytes)}")
    for label, refusals in (("rejected", r.rejected), ("lost", r.lost), ("excluded", r.excluded)):
        for item in refusals:
            table.add_row(label, escape(f"{item.worker}: {item.reason} [{item.code}]"))
    if r.waiting:
        table.add_row("waiting for", ", ".join(r.waiting))
    table.add_row("opened", r.opened_at)
    if r.seconds is not None:
        table.add_row("took", f"{r.seconds:.3f} s")
    table.add_row("bytes", f"{size(r.bytes_up)} up, {size(r.bytes_down)} down")
    if r.metrics:
        table.add_row("metrics", " ".join(f"{k}={v:.4f}" for k, v in r.metrics.items()))
    if r.model:
        table.add_row("model", r.model)
    table.add_row("trace", r.trace_id)
    return table

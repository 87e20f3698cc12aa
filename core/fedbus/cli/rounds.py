"""`fedbus round start | show | list`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from fedbus_schemas.ids import parse_ref
from fedbus_schemas.report import RoundReport, RunReport, RunSummary
from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedbus.api.federation import Federation
from fedbus.base.errors import ConfigError, RunAborted
from fedbus.cli.output import (
    console,
    dir_option,
    json_option,
    print_json,
    reporting,
    round_details,
    round_table,
    run_list,
    url_option,
    with_federation,
)
from fedbus.cli.planfile import read_plan_file


@click.group("round")
def round_group() -> None:
    """Start runs and look at their rounds."""


@round_group.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), help="How many rounds; overrides the plan.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key: close.deadline_s=30"
)
@click.option("--name", help="Name of the run.  [default: the next run-NNNN]")
@click.option("--watch", is_flag=True, help="Follow the run to its end; fails when it aborts.")
@dir_option
@url_option
@json_option
@reporting
def start(
    plan: Path,
    rounds: int | None,
    settings: tuple[str, ...],
    name: str | None,
    watch: bool,
    folder: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Start a run under PLAN, a YAML file."""
    values = read_plan_file(plan, settings, rounds)

    async def work(federation: Federation) -> RunReport:
        run = await federation.start(values, name)
        if not watch:
            return await federation.run(run)
        return await follow(federation, run, Console(stderr=True) if as_json else console())

    report = with_federation(folder, url, work)
    if as_json:
        print_json(report)
    elif not watch:
        click.echo(f"{report.run} started")
        click.echo(f"look at it with: fedbus round show {report.run}")
    if watch:
        finish(report)


@round_group.command()
@click.argument("ref")
@dir_option
@url_option
@json_option
@reporting
def show(ref: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Show a run (RUN) or one of its rounds (RUN/N)."""
    try:
        run, number = parse_ref(ref)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    async def work(federation: Federation) -> RunReport | RoundReport:
        return await (federation.run(run) if number is None else federation.round(run, number))

    report = with_federation(folder, url, work)
    if as_json:
        print_json(report)
    else:
        console().print(round_table(report) if isinstance(report, RunReport) else round_details(report))


@round_group.command("list")
@click.argument("run", required=False)
@dir_option
@url_option
@json_option
@reporting
def list_(run: str | None, folder: Path | None, url: str | None, as_json: bool) -> None:
    """List all runs, or the rounds of one RUN."""

    async def work(federation: Federation) -> RunReport | list[RunSummary]:
        return await (federation.runs() if run is None else federation.run(run))

    found = with_federation(folder, url, work)
    if isinstance(found, RunReport):
        if as_json:
            print_json(found.rounds)
        else:
            console().print(round_table(found))
    elif as_json:
        print_json(found)
    elif found:
        console().print(run_list(found))
    else:
        click.echo("no runs yet: start one with `fedbus round start PLAN`")


async def follow(federation: Federation, run: str, out: Console) -> RunReport:
    """Show a run until its end: live on a terminal, else a line for each round; then the table."""
    report: RunReport | None = None
    if out.is_terminal:
        with Live(Text(f"{run} ..."), console=out, refresh_per_second=4) as live:
            async for report in federation.watch(run):
                live.update(round_table(report))
    else:
        told: set[str] = set()
        async for report in federation.watch(run):
            for line in _lines(report):
                if line not in told:
                    told.add(line)
                    out.print(line, markup=False)
        if report is not None:
            out.print(round_table(report))
    assert report is not None, "a watch yields at least once"
    return report


def _lines(report: RunReport) -> list[str]:
    """What is worth a line of a log: waits, and rounds that ended."""
    waits = [f"{report.run} waits: {report.reason}"] if report.state == "waiting" and report.reason else []
    ended = [r for r in report.rounds if r.state in ("finished", "aborted")]
    return waits + [f"{report.run}/{r.round} {r.state}: {_said(r)}" for r in ended]


def _said(r: RoundReport) -> str:
    said = f"{r.accepted}/{len(r.cohort)} updates, {r.seconds or 0:.2f} s"
    return f"{said}, {r.reason}" if r.reason else said


def finish(report: RunReport) -> None:
    """Exit with an error when the run was aborted.

    Raises:
        RunAborted: says why.
    """
    if report.state == "aborted":
        error = RunAborted(f"{report.run} was aborted: {report.reason}")
        click.echo(f"error[{error.code}]: {error.message}", err=True)
        sys.exit(error.exit_code)

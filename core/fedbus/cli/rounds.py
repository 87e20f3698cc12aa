"""`fedbus round start | show | list | watch | abort`."""

from __future__ import annotations

from pathlib import Path

import click
from fedbus_schemas.report import RoundReport, RunReport, RunSummary
from rich.console import Console

from fedbus.api.federation import Federation
from fedbus.api.planfile import read_plan_file
from fedbus.api.refs import read_ref
from fedbus.base.errors import ConfigError
from fedbus.cli.display import finish, follow
from fedbus.cli.output import (
    console,
    dir_option,
    json_option,
    print_json,
    print_list,
    reporting,
    round_details,
    run_details,
    run_list,
    url_option,
    with_federation,
)
from fedbus.rounds.planning import MOST_REASON


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
    run, number = read_ref(ref)

    async def work(federation: Federation) -> RunReport | RoundReport:
        return await (federation.run(run) if number is None else federation.round(run, number))

    report = with_federation(folder, url, work)
    if as_json:
        print_json(report)
    else:
        console().print(run_details(report) if isinstance(report, RunReport) else round_details(report))


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
            console().print(run_details(found))
    else:
        print_list(found, as_json, run_list, "no runs yet: start one with `fedbus round start PLAN`")


@round_group.command()
@click.argument("run")
@dir_option
@url_option
@json_option
@reporting
def watch(run: str, folder: Path | None, url: str | None, as_json: bool) -> None:
    """Follow RUN to its end; fails when it aborts. Ctrl-C ends the watching, not the run."""

    async def work(federation: Federation) -> RunReport:
        return await follow(federation, run, Console(stderr=True) if as_json else console())

    report = with_federation(folder, url, work)
    if as_json:
        print_json(report)
    finish(report)


@round_group.command()
@click.argument("run")
@click.option("--reason", help="Why; it stands in the log, and everybody is told.")
@dir_option
@url_option
@json_option
@reporting
def abort(run: str, reason: str | None, folder: Path | None, url: str | None, as_json: bool) -> None:
    """End RUN now: its open round is aborted, and its workers stop."""
    if reason is not None and not 0 < len(reason) <= MOST_REASON:
        raise ConfigError(f"--reason takes 1 to {MOST_REASON} characters")

    async def work(federation: Federation) -> RunReport:
        await federation.abort(run, reason)
        # The planner has stored the wish; the log says when it is done.
        async for report in federation.watch(run):
            if report.state in ("finished", "aborted"):
                break
        return report

    report = with_federation(folder, url, work)
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report.run} {report.state}: {report.reason or 'its last round was over already'}")

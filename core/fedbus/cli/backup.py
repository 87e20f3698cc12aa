"""`fedbus backup | restore`: the one stateful thing of a federation, as files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click
from fedbus_schemas.report import BackupReport, RestoreReport

from fedbus.cli.output import dir_option, json_option, print_json, reporting
from fedbus.runtime.backup import back_up
from fedbus.runtime.backup import restore as put_back
from fedbus.runtime.identity import stack_folder


@click.command()
@click.argument("to", type=click.Path(path_type=Path))
@dir_option
@json_option
@reporting
def backup(to: Path, folder: Path | None, as_json: bool) -> None:
    """Copy a stack's state into the new folder TO; the stack may run.

    It holds all runs, models and updates that the broker keeps, and the secrets of all
    parties: keep it as safe as the stack itself.
    """
    began = time.monotonic()
    made = back_up(stack_folder(folder), to)
    report = BackupReport(
        backup=str(to),
        files=len(made.index.files),
        bytes=made.index.bytes,
        seconds=round(time.monotonic() - began, 6),
        stopped_s=round(made.stopped_s, 6),
    )
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"backed up {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s to {to}; "
            f"the broker stood still for {1e3 * report.stopped_s:.0f} ms"
        )


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@dir_option
@json_option
@reporting
def restore(backup: Path, folder: Path | None, as_json: bool) -> None:
    """Make a stack in a new folder (--dir) from BACKUP; `fedbus up` there goes on with its runs."""
    home = stack_folder(folder)
    index, runs = asyncio.run(put_back(backup, home))
    report = RestoreReport(folder=str(home), bytes=index.bytes, made_at=index.made_at, open_runs=runs)
    if as_json:
        print_json(report)
        return
    click.echo(f"restored {report.bytes / 1e6:.1f} MB to {home}; every file is what was backed up")
    click.echo(f"runs that go on: {', '.join(runs) or 'none'}")
    click.echo(f"next: fedbus up --dir {home}")

"""The `fedbus` command."""

from __future__ import annotations

import logging
import os
import sys

import click

from fedbus.base.errors import FedbusError
from fedbus.base.settings import check_environment
from fedbus.cli.backup import backup, restore
from fedbus.cli.completion import completion
from fedbus.cli.demo import demo
from fedbus.cli.explaining import explain
from fedbus.cli.members import invite_group, worker_group
from fedbus.cli.models import model_group
from fedbus.cli.plans import plan_group
from fedbus.cli.replaying import replay
from fedbus.cli.rounds import round_group
from fedbus.cli.up import up
from fedbus.cli.waterfall import trace


class _Lines(logging.Handler):
    """Log lines as a command says them; on a terminal above its live display, which takes stderr over."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@click.group()
@click.version_option(package_name="fedbus")
def main() -> None:
    """Run federated learning: training goes to the data, only updates come back."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()], format="%(message)s")
    # Who reads that the broker is away wants to read that it is back.
    logging.getLogger("fedbus.bus.connection").setLevel(logging.INFO)
    try:
        check_environment(os.environ)
    except FedbusError as error:
        click.echo(f"error[{error.code}]: {error.message}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)


round_group.add_command(explain)
round_group.add_command(replay)
round_group.add_command(trace)
main.add_command(round_group)
main.add_command(model_group)
main.add_command(demo)
main.add_command(invite_group)
main.add_command(worker_group)
main.add_command(up)
main.add_command(backup)
main.add_command(restore)
main.add_command(plan_group)
main.add_command(completion)

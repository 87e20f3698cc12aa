"""The `fedbus` command."""

from __future__ import annotations

import os
import sys

import click

from fedbus.base.errors import FedbusError
from fedbus.base.settings import check_environment
from fedbus.cli.demo import demo
from fedbus.cli.rounds import round_group


@click.group()
@click.version_option(package_name="fedbus")
def main() -> None:
    """Run federated learning: training goes to the data, only updates come back."""
    try:
        check_environment(os.environ)
    except FedbusError as error:
        click.echo(f"error[{error.code}]: {error.message}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)


main.add_command(round_group)
main.add_command(demo)

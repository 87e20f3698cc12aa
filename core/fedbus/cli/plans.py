"""`fedbus plan init | lint | show`: write and check plans, without a broker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import click
import yaml
from fedbus_schemas.plan import Plan

from fedbus.api.planfile import read_plan_file
from fedbus.base.errors import ConfigError
from fedbus.cli.output import json_option, reporting
from fedbus.rounds.admission import admit, read_plan
from fedbus.rounds.plantext import commented_plan, plain_plan
from fedbus.tasks.load import installed, load_class
from fedbus.tasks.params import build_params

set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key: close.deadline_s=30"
)


@click.group("plan")
def plan_group() -> None:
    """Write and check plans."""


@plan_group.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--task", default="digits", show_default=True, help="The plan's task.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@reporting
def init(file: Path | None, task: str, force: bool) -> None:
    """Write a plan with every key at its default, with comments, to FILE or to the terminal."""
    text = commented_plan(read_plan({"task": task}).task)
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        with file.open("w" if force else "x") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists already", hint="--force writes over it") from None
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}; check it with: fedbus plan lint {file}")


@plan_group.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@json_option
@reporting
def lint(file: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Check the plan in FILE as the planner will: keys, types, names, parameters, sense."""
    plan = _checked(file, settings)
    notes = []
    if ":" in plan.task:
        notes.append(
            f"{plan.task} is not imported here: its parameters, under train, are checked on the workers"
        )
    elif plan.task not in installed():
        notes.append(f"task {plan.task} is not installed here: its parameters are checked on the workers")
    if as_json:
        click.echo(json.dumps({"plan": plan.digest(), "notes": notes}, indent=2))
        return
    click.echo(f"{file}: nothing wrong found")
    for note in notes:
        click.echo(f"note: {note}")


@plan_group.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@json_option
@reporting
def show(file: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Print the plan in FILE with every default filled in, those of an installed task included."""
    plan = _checked(file, settings)
    values = plain_plan(plan)
    if (task := installed().get(plan.task)) is not None:
        with contextlib.suppress(ImportError):  # its libraries are on the workers only
            values["train"] = dataclasses.asdict(build_params(load_class(task), plan.train))
    text = json.dumps(values, indent=2) + "\n" if as_json else yaml.safe_dump(values, sort_keys=False)
    click.echo(text, nl=False)


def _checked(file: Path, settings: tuple[str, ...]) -> Plan:
    plan = read_plan(read_plan_file(file, settings))
    admit(plan)
    return plan

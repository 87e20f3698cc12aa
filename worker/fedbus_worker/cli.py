"""The `fedbus-worker` command."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import NoReturn

import click
from fedbus.base.clock import SystemClock
from fedbus.base.errors import ConfigError, FedbusError
from fedbus.base.settings import Settings, load, variable
from fedbus.rounds.report import iso
from fedbus.runtime.allocator import keep_freed
from fedbus.runtime.child import Trainer
from fedbus.runtime.disk import DiskNews, DiskWatch, follow
from fedbus.runtime.logs import set_up
from fedbus.runtime.service import fail, until_signal
from fedbus_schemas.report import ErrorBody, ErrorReport

from fedbus_worker.agent import Agent
from fedbus_worker.connecting import connect
from fedbus_worker.entering import enter
from fedbus_worker.hosted import hosted, leave
from fedbus_worker.offering import check_offers
from fedbus_worker.state import default_state

log = logging.getLogger(__name__)


class JoinSettings(Settings):
    """What `fedbus-worker join` is told."""

    url: str | None = None
    ca: str | None = None
    name: str | None = None
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    labels: dict[str, str] = {}
    python: str = sys.executable
    dir: Path | None = None
    state: Path | None = None
    idle_exit_s: float = 300.0
    threads: int = 1


@click.group()
@click.version_option(package_name="fedbus")
def main() -> None:
    """Take part in federated learning: training comes to this host's data, only updates leave."""


@main.command()
@click.argument("url", required=False)
@click.option("--ca", metavar="FILE", help="Authority of the broker's certificate; demands TLS.")
@click.option("--name", help="Name of this worker.  [default: host name and the first free number]")
@click.option(
    "--task", "tasks", multiple=True, metavar="MODULE:CLASS", help="Offer a task beside those installed."
)
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="This site's own data."
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label that plans may require.")
@click.option("--python", help="Interpreter of the trainer process: Python 3.9 or later with numpy.")
@click.option(
    "--dir", type=click.Path(path_type=Path), help="Folder of the local stack.  [default: ./.fedbus]"
)
@click.option("--state", type=click.Path(path_type=Path), help="Folder for spool and models.")
@click.option(
    "--idle-exit", "idle_exit_s", type=float, help="Seconds without a task until the trainer exits."
)
@click.option("--threads", type=click.IntRange(1), help="Threads the trainer may use.  [default: 1]")
def join(labels: tuple[str, ...], **flags: object) -> None:
    """Join a federation and train until stopped.

    URL is the string that `fedbus invite create` printed, in quotes; later the saved
    credential is used. Without URL the local stack is joined, so on one machine no flag
    is needed, and where there is none, the federation joined before.
    """
    try:
        given = {key: value for key, value in flags.items() if value not in (None, ())}
        settings = load(JoinSettings, {**given, "labels": _labels(labels)})
        keep_freed()
        asyncio.run(_join(settings))
    except FedbusError as error:
        fail(error)


@main.command()
@click.argument("name", required=False)
@click.option("--state", type=click.Path(path_type=Path), help="Folder for spool and models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(name: str | None, state: Path | None, as_json: bool) -> None:
    """Show the workers of this host: which run, and in which federation."""
    try:
        found = hosted(state or default_state(), name)
    except FedbusError as error:
        _fail(error, as_json)
    if as_json:
        items = ",\n".join(each.model_dump_json(indent=2) for each in found)
        click.echo(f'{{"items": [{items}]}}')
    elif not found:
        click.echo("no workers on this host yet: one joins with `fedbus-worker join`")
    for each in [] if as_json else found:
        how = f"running since {each.since} (process {each.pid})" if each.running else "not running"
        click.echo(f"{each.worker} at {each.federation}: {how}")


@main.command("leave")
@click.argument("name")
@click.option("--federation", metavar="URL", help="Which, where the worker is in several: nats://HOST:PORT")
@click.option("--state", type=click.Path(path_type=Path), help="Folder for spool and models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def leave_(name: str, federation: str | None, state: Path | None, as_json: bool) -> None:
    """Tell a running worker of this host to say goodbye and end. It may join again."""
    try:
        left = leave(state or default_state(), name, federation)
    except FedbusError as error:
        _fail(error, as_json)
    if as_json:
        click.echo(left.model_copy(update={"running": False, "pid": None}).model_dump_json(indent=2))
    else:
        click.echo(f"{left.worker} has left {left.federation}")


def _fail(error: FedbusError, as_json: bool) -> NoReturn:
    if as_json:
        body = ErrorBody(code=error.code, message=error.message, hint=error.hint)
        click.echo(ErrorReport(error=body).model_dump_json())
        sys.exit(error.exit_code)
    fail(error)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(labels) != len(pairs):
        raise ConfigError(f"--label wants K=V with different keys, got {', '.join(pairs)}")
    return labels


def _say(news: DiskNews) -> None:
    log.warning("%s", news.reason, extra={"action": "disk", "code": news.code})


async def _join(settings: JoinSettings) -> None:
    url = settings.url or variable("FEDBUS_URL")
    await check_offers(settings.tasks, settings.python)
    root = settings.state or default_state()
    state, credentials = await enter(root, url, settings.name, settings.dir, settings.ca or None)
    state.note(credentials.url, iso(SystemClock().now()))
    set_up(credentials.name)
    trainer = Trainer(
        state.folder / "path",
        python=settings.python,
        idle_exit_s=settings.idle_exit_s,
        threads=settings.threads,
    )
    try:
        bus = await connect(credentials)
        log.info("joined %s as %s", credentials.url, credentials.name)
        agent = Agent(
            bus,
            trainer,
            state.folder,
            models=root / "models",
            tasks=settings.tasks,
            data=settings.data,
            labels=settings.labels,
        )
        disk = DiskWatch(state.folder, "models and updates cannot be kept, and rounds are given up")
        watching = asyncio.create_task(follow(disk, _say))
        try:
            await until_signal(agent.run())
            log.info("stopped")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await bus.close()
    finally:
        await trainer.stop()
        state.release()

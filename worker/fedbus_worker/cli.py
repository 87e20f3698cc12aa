"""The `fedbus-worker` command."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
from fedbus.base.errors import ConfigError, FedbusError
from fedbus.base.settings import Settings, load, variable
from fedbus.bus import Bus, Credentials
from fedbus.runtime.broker import add_worker
from fedbus.runtime.child import Trainer
from fedbus.runtime.identity import stack_folder
from fedbus.runtime.logs import set_up
from fedbus.runtime.service import fail, until_signal
from fedbus.runtime.stackfile import read_stack

from fedbus_worker.agent import Agent
from fedbus_worker.state import WorkerState, claim, default_state

log = logging.getLogger(__name__)


class JoinSettings(Settings):
    """What `fedbus-worker join` is told."""

    url: str | None = None
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

    URL is nats://NAME:PASSWORD@HOST:PORT. Without it the local stack is joined, so on
    one machine no flag is needed.
    """
    try:
        given = {key: value for key, value in flags.items() if value not in (None, ())}
        settings = load(JoinSettings, {**given, "labels": _labels(labels)})
        asyncio.run(_join(settings))
    except FedbusError as error:
        fail(error)


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(labels) != len(pairs):
        raise ConfigError(f"--label wants K=V with different keys, got {', '.join(pairs)}")
    return labels


async def _join(settings: JoinSettings) -> None:
    state, credentials = await asyncio.to_thread(_enter, settings)
    set_up(credentials.name)
    trainer = Trainer(
        state.folder / "path",
        python=settings.python,
        idle_exit_s=settings.idle_exit_s,
        threads=settings.threads,
    )
    try:
        bus = await Bus.connect(credentials, wait_s=None)
        log.info("joined %s as %s", credentials.url, credentials.name)
        agent = Agent(
            bus, trainer, state.folder, tasks=settings.tasks, data=settings.data, labels=settings.labels
        )
        try:
            await until_signal(agent.run())
        finally:
            await bus.close()
    finally:
        await trainer.stop()
        state.release()


def _enter(settings: JoinSettings) -> tuple[WorkerState, Credentials]:
    """The worker's locked folder and its credential: of the URL, or newly made in the local stack."""
    root = settings.state or default_state()
    url = settings.url or variable("FEDBUS_URL")
    if url:
        credentials = Credentials.from_url(url)
        if settings.name not in (None, credentials.name):
            raise ConfigError(f"--name {settings.name} is not the URL's user {credentials.name}")
        return claim(root, urlsplit(credentials.url).netloc, credentials.name), credentials
    folder = stack_folder(settings.dir)
    stack = read_stack(folder)
    if stack is None:
        raise ConfigError(
            f"nothing to join: there is no stack in {folder}, and no URL was given",
            hint="fedbus-worker join nats://NAME:PASSWORD@HOST:PORT",
        )
    state = claim(root, urlsplit(stack.url).netloc, settings.name)
    return state, add_worker(folder, state.folder.name)

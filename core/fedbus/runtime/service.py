"""How a service runs: connect, serve until a signal, leave. The same for all."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Protocol

import click

from fedbus.base.errors import FedbusError
from fedbus.base.settings import Settings, load
from fedbus.bus import Bus
from fedbus.bus.provision import provision, wait_provisioned
from fedbus.runtime.alive import keep_saying_alive
from fedbus.runtime.allocator import keep_freed
from fedbus.runtime.identity import credentials_of
from fedbus.runtime.logs import set_up

log = logging.getLogger(__name__)


class ServiceSettings(Settings):
    """What every service is told."""

    dir: Path | None = None
    url: str | None = None
    ca: str | None = None


class Service(Protocol):
    """A thin shell around the pure core."""

    async def run(self) -> None:
        """Serve until cancelled."""
        ...


def command(name: str, make: Callable[[Bus, Path | None], Service]) -> click.Command:
    """The command line of a service: `python -m fedbus_<name>`.

    Args:
        name: the service's name and identity.
        make: builds it on a connection; also given the stack's folder, where it may keep files.
    """

    @click.command(name=f"fedbus-{name}", help=f"Run the {name} until Ctrl-C or SIGTERM.")
    @click.option(
        "--dir", type=click.Path(path_type=Path), help="Folder of the local stack.  [default: ./.fedbus]"
    )
    @click.option("--url", help="Broker, with credentials: nats://user:password@host:4222, or tls://")
    @click.option("--ca", metavar="FILE", help="Authority of the broker's certificate; demands TLS.")
    def main(dir: Path | None, url: str | None, ca: str | None) -> None:
        try:
            settings = load(ServiceSettings, {"dir": dir, "url": url, "ca": ca})
            set_up(name)
            keep_freed()
            asyncio.run(_serve(name, settings, make))
        except FedbusError as error:
            fail(error)

    return main


def fail(error: FedbusError) -> NoReturn:
    """Print an error as people read it, and exit with its family's code."""
    click.echo(f"error[{error.code}]: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    sys.exit(error.exit_code)


async def _serve(name: str, settings: ServiceSettings, make: Callable[[Bus, Path | None], Service]) -> None:
    credentials = credentials_of(name, settings.dir, settings.url, settings.ca)
    bus = await Bus.connect(credentials, wait_s=None, refusals=None)
    try:
        # The planner is the first writer, so the storage is its to make.
        await (provision(bus) if name == "planner" else wait_provisioned(bus))
        log.info("%s ready on %s", name, credentials.url, extra={"action": "ready"})
        await until_signal(make(bus, settings.dir).run())
    finally:
        await bus.close()


async def until_signal(work: Awaitable[None]) -> None:
    """Run something until it ends or the process is told to stop; SIGINT and SIGTERM cancel it."""
    task = asyncio.ensure_future(work)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    waiting = asyncio.ensure_future(told.wait())
    alive = asyncio.ensure_future(keep_saying_alive())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    while not task.done():
        # Again and again: a cancellation can get lost in a library that catches too much.
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    alive.cancel()
    with suppress(asyncio.CancelledError):
        task.result()

"""`fedbus up`: broker and services on this machine, supervised."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import click

from fedbus.cli.output import dir_option, json_option, reporting
from fedbus.runtime.alive import keep_saying_alive
from fedbus.runtime.identity import DEFAULT_DIR, stack_folder
from fedbus.runtime.listening import LOOPBACK
from fedbus.runtime.stack import BROKER, LocalStack
from fedbus.runtime.stackfile import read_stack
from fedbus.runtime.supervisor import Supervisor


@click.command()
@dir_option
@click.option(
    "--listen",
    default=f"{LOOPBACK}:0",
    help="HOST:PORT of the broker.  [default: this machine only, a free port that stays the same]",
)
@click.option(
    "--standby", is_flag=True, help="A second aggregator takes over when the first one dies or hangs."
)
@json_option
@reporting
def up(folder: Path | None, listen: str, standby: bool, as_json: bool) -> None:
    """Run a federation's broker and services on this machine, until Ctrl-C or SIGTERM.

    What dies or hangs is started again. All state is in the folder: started again there, also
    after a restart of the machine, open runs go on by themselves. A second Ctrl-C kills.
    """
    asyncio.run(_up(LocalStack(stack_folder(folder), listen=listen), standby, as_json))


async def _up(stack: LocalStack, standby: bool, as_json: bool) -> None:
    told = asyncio.Event()
    stopping = False

    def hear() -> None:
        if stopping:
            _say("killed")
            stack.kill()
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, hear)
    await asyncio.to_thread(stack.open)
    try:
        await asyncio.to_thread(stack.start_services)
        if standby:
            await asyncio.to_thread(stack.start_standby)
        await asyncio.to_thread(stack.write_pids)
        _introduce(stack, as_json)
        if stack.broker.exposed:
            _say(
                "warning[no-tls]: other hosts can reach the broker, and there is no encryption yet: "
                "passwords and models cross the network in clear text; use a network that you trust, or a VPN"
            )
        supervising = asyncio.create_task(Supervisor(stack, _say).run())
        waiting = asyncio.create_task(told.wait())
        alive = asyncio.create_task(keep_saying_alive())
        await asyncio.wait([supervising, waiting], return_when=asyncio.FIRST_COMPLETED)
        supervising.cancel()
        alive.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervising
    finally:
        stopping = True
        _say("stopping; Ctrl-C again kills")
        await asyncio.to_thread(stack.stop)


def _say(line: str) -> None:
    click.echo(f"fedbus up: {line}", err=True)


def _introduce(stack: LocalStack, as_json: bool) -> None:
    if as_json:
        known = read_stack(stack.folder)
        assert known is not None, "the broker has just written it"
        click.echo(known.model_dump_json(indent=2))
        return
    there = "" if stack.folder == DEFAULT_DIR.absolute() else f" --dir {stack.folder}"
    running = ", ".join(name for name in stack.names if name != BROKER)
    click.echo(f"broker on {stack.broker.url}, with {running}")
    click.echo(f"  a worker on this host:  fedbus-worker join{there}")
    click.echo(f"  workers on other hosts: fedbus invite create{there}   (prints what they join with)")
    click.echo(f"  start a run:            fedbus round start PLAN --watch{there}")
    click.echo(f"  logs:                   {stack.folder / 'logs'}")
    click.echo("everything stops with Ctrl-C")

"""`fedbus demo`: the processes that a person would start by hand, and a trained model at the end."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import click
from fedbus_schemas.report import RunReport
from rich.console import Console

from fedbus.api.federation import Federation
from fedbus.base.errors import ConfigError
from fedbus.cli.output import console, dir_option, json_option, print_json, reporting
from fedbus.cli.rounds import finish, follow
from fedbus.runtime.identity import stack_folder
from fedbus.runtime.stack import LocalStack


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="How many rounds.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="How many workers.")
@dir_option
@json_option
@reporting
def demo(rounds: int, workers: int, folder: Path | None, as_json: bool) -> None:
    """Train a model on real images of digits, in processes on this machine.

    Broker, planner, aggregator, evaluator and workers are started, and stopped at the
    end. Each worker holds its own part of the data, cut unevenly (dirichlet, alpha 0.3).
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("the demo needs torch", hint="pip install 'fedbus[demo]'")
    out = Console(stderr=True) if as_json else console()
    home = stack_folder(folder) / "demo"
    home.mkdir(parents=True, exist_ok=True)
    report = asyncio.run(_demo(home, rounds, workers, out))
    if as_json:
        print_json(report)
    finish(report)


async def _demo(folder: Path, rounds: int, workers: int, out: Console) -> RunReport:
    plan = {
        "task": "digits",
        "rounds": rounds,
        "seed": 7,
        "data": {"partition": "dirichlet", "alpha": 0.3, "parts": workers},
        "cohort": {"min": workers},
        "close": {"deadline_s": 120.0},
    }
    async with LocalStack(folder) as stack:
        out.print(
            f"starting broker ({stack.broker.url}), planner, aggregator, evaluator and {workers} workers"
        )
        stack.start_services()
        for number in range(1, workers + 1):
            stack.start_worker(f"w{number}")
        async with await Federation.connect(stack.broker.accounts.credentials("operator")) as federation:
            run = await federation.start(plan)
            report = await _follow(federation, stack, run, out)
    out.print(f"kept in {folder}: the log of every process in logs/, the streams in broker/")
    return report


async def _follow(federation: Federation, stack: LocalStack, run: str, out: Console) -> RunReport:
    """Follow the run, and notice a process that ends before it."""
    following = asyncio.create_task(follow(federation, run, out))
    try:
        while not following.done():
            await asyncio.wait([following], timeout=1.0)
            stack.check()
        return following.result()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

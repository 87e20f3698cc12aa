"""`fedbus demo`: the processes that `fedbus up` and `fedbus-worker join` start, and a trained model."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import click
from fedbus_schemas.report import RunReport
from rich.console import Console

from fedbus.api.federation import Federation
from fedbus.base.errors import ConfigError
from fedbus.cli.chaos import Strike, story, strike, strikes
from fedbus.cli.chart import bars, write_png
from fedbus.cli.display import finish, follow
from fedbus.cli.output import console, dir_option, json_option, print_json, reporting
from fedbus.runtime.identity import stack_folder
from fedbus.runtime.rights import SERVICES
from fedbus.runtime.stack import LocalStack
from fedbus.runtime.supervisor import Supervisor

# A process that ends so often in a row will not come up: better say so than try for ever.
PATIENCE = 5


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="How many rounds.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="How many workers.")
@click.option("--chaos", is_flag=True, help="Kill processes meanwhile, and tell what became of the rounds.")
@dir_option
@json_option
@reporting
def demo(rounds: int, workers: int, chaos: bool, folder: Path | None, as_json: bool) -> None:
    """Train a model on real images of digits, in processes on this machine.

    Broker, services and workers are started, supervised, and stopped at the end. Each
    worker holds its own part of the data, cut unevenly (dirichlet, alpha 0.3).
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("the demo needs torch", hint="pip install 'fedbus[demo]'")
    out = Console(stderr=True) if as_json else console()
    home = stack_folder(folder) / "demo"
    names = [f"w{number}" for number in range(1, workers + 1)]
    planned = strikes(rounds, names) if chaos else []
    report = asyncio.run(_demo(home, rounds, names, planned, out))
    if as_json:
        print_json(report)
    if chaos:
        for line in story(report, planned):
            out.print(line, markup=False, soft_wrap=True)
    _conclude(report, home, out)
    finish(report)


async def _demo(
    folder: Path, rounds: int, workers: Sequence[str], planned: Sequence[Strike], out: Console
) -> RunReport:
    def say(line: str) -> None:
        out.print(line, markup=False)

    plan = {
        "task": "digits",
        "rounds": rounds,
        "seed": 7,
        "data": {"partition": "dirichlet", "alpha": 0.3, "parts": len(workers)},
        "cohort": {"min": len(workers)},
        "close": {"deadline_s": 120.0},
        # One epoch more than the task's default: no round falls back by more than a few images.
        "train": {"epochs": 3},
    }
    async with LocalStack(folder) as stack:
        out.print(f"starting broker ({stack.broker.url}), {', '.join(SERVICES)} and {len(workers)} workers")
        stack.start_services()
        for name in workers:
            stack.start_worker(name)
        supervising = asyncio.create_task(Supervisor(stack, say, PATIENCE).run())
        async with await Federation.connect(stack.broker.accounts.credentials("operator")) as federation:
            run = await federation.start(plan)
            following = asyncio.create_task(follow(federation, run, out))
            striking = asyncio.create_task(strike(stack, federation, run, planned, say))
            tasks = [supervising, following, striking]
            try:
                # Supervision ends by an error only, which is raised here.
                await asyncio.wait([supervising, following], return_when=asyncio.FIRST_COMPLETED)
                return await (following if following.done() else supervising)  # type: ignore[return-value]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _conclude(report: RunReport, folder: Path, out: Console) -> None:
    """What came of it: a chart, where everything is, what to do next."""
    accuracy = [r.metrics["accuracy"] for r in report.rounds if "accuracy" in r.metrics]
    if accuracy:
        picture = folder / f"{report.run}-accuracy.png"
        write_png(accuracy, picture)
        out.print("accuracy on held-out images, by round")
        for line in bars(accuracy):
            out.print(line, markup=False)
        out.print(f"final held-out accuracy: {accuracy[-1]:.4f}; the chart is in {picture}", soft_wrap=True)
    out.print(f"kept in {folder}: the log of every process in logs/, the streams in broker/", soft_wrap=True)
    out.print("try next:")
    out.print("  fedbus plan init my-plan.yaml    # a plan of your own")
    out.print(
        f"  fedbus up --dir {folder}    # the same federation again; then, in another terminal:",
        soft_wrap=True,
    )
    out.print(f"  fedbus round show {report.run}/1 --dir {folder}", soft_wrap=True)

"""A run on the terminal while it goes on: a table that grows, and how far each worker is."""

from __future__ import annotations

import sys

import click
from fedbus_schemas.messages import Progress
from fedbus_schemas.report import RoundReport, RunReport
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fedbus.api.federation import Federation
from fedbus.base.errors import RunAborted
from fedbus.cli.output import because, mishaps, run_details, run_table
from fedbus.rounds.report import NOT_SCORED
from fedbus.rounds.waits import USUAL

BAR = 20
MOST_WORKERS = 16  # lines of the open round; of a larger cohort the first ones
_TICK_HZ = 4


class RunView:
    """What is shown of a run; rich draws it anew a few times a second."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._progress: dict[str, Progress] = {}
        self.report: RunReport | None = None

    def hear(self, progress: Progress) -> None:
        """Note how far a worker is."""
        if progress.run == self._run:
            self._progress[progress.worker] = progress

    def __rich__(self) -> RenderableType:
        """The run, and below it a line for each worker of the open round."""
        if self.report is None:
            return Text(f"{self._run} ...")
        # Why a run was aborted is the error that the command ends with.
        return Group(
            run_details(self.report, why=self.report.state != "aborted"),
            *[Text(line) for line in self.lines()],
        )

    def lines(self) -> list[str]:
        """How far each member of the open round is; before the first round, whoever makes the first model."""
        rounds = self.report.rounds if self.report else []
        if not rounds:
            made = sorted(p.worker for p in self._progress.values() if p.round == 0)
            return [self._line(worker, 0) for worker in made[:MOST_WORKERS]]
        last = rounds[-1]
        if last.state != "open":
            return []
        said = [self._line_of(worker, last) for worker in last.cohort[:MOST_WORKERS]]
        more = len(last.cohort) - len(said)
        return [*said, f"  and {more} more"] if more else said

    def _line_of(self, worker: str, r: RoundReport) -> str:
        if any(update.worker == worker for update in r.accepted_updates):
            return f"  {worker:<16} {'━' * BAR} counted"
        for label, items in (("lost", r.lost), ("rejected", r.rejected)):
            for item in items:
                if item.worker == worker:
                    return f"  {worker:<16} {' ' * BAR} {label}: {item.reason} [{item.code}]"
        return self._line(worker, r.round)

    def _line(self, worker: str, number: int) -> str:
        progress = self._progress.get(worker)
        if progress is None or progress.round != number:
            return f"  {worker:<16} {'·' * BAR} waiting"
        done = round(progress.fraction * BAR)
        return f"  {worker:<16} {'━' * done + '·' * (BAR - done)} {progress.phase} {progress.fraction:.0%}"


async def follow(federation: Federation, run: str, out: Console) -> RunReport:
    """Show a run until its end: live on a terminal, else a line for each round; then the table."""
    view = RunView(run)
    if out.is_terminal:
        await federation.hear_progress(view.hear)
        with Live(view, console=out, refresh_per_second=_TICK_HZ):
            async for view.report in federation.watch(run):
                pass
    else:
        told: set[str] = set()
        async for view.report in federation.watch(run):
            for line in log_lines(view.report):
                if line not in told:
                    told.add(line)
                    out.print(line, markup=False)
        if view.report is not None:
            out.print(run_table(view.report, why=False))
    assert view.report is not None, "a watch yields at least once"
    return view.report


def log_lines(report: RunReport) -> list[str]:
    """What is worth a line of a log: waits, who was left out, lost or refused, and rounds that ended."""
    over = report.state in ("finished", "aborted")
    waits = report.reason and not over and report.code not in USUAL
    ended = [r for r in report.rounds if r.state in ("finished", "aborted")]
    return [
        *([f"{report.run} waits: {because(report)}"] if waits else []),
        *mishaps(report),
        *[line for r in ended for line in _ended(report, r)],
    ]


def _ended(report: RunReport, r: RoundReport) -> list[str]:
    """That a round has ended and how; and that its model has no score, which is known later."""
    name = f"{report.run}/{r.round}"
    said = f"{name} {r.state}: {r.accepted}/{len(r.cohort)} updates, {r.seconds or 0:.2f} s"
    if r.state == "aborted" or not r.reason:
        return [said]  # why a run was aborted is the error that the command ends with
    closed, mark, unscored = r.reason.partition(NOT_SCORED)
    closed = closed.removesuffix("; ")
    code = f" [{r.code}]"
    lines = [f"{said}, {closed}{code}" if closed else said]
    return [*lines, f"{name} {mark}{unscored}{'' if closed else code}"] if mark else lines


def finish(report: RunReport) -> None:
    """Exit with an error when the run was aborted.

    Raises:
        RunAborted: says why.
    """
    if report.state == "aborted":
        error = RunAborted(f"{report.run} was aborted: {report.reason}")
        click.echo(f"error[{error.code}]: {error.message}", err=True)
        sys.exit(error.exit_code)

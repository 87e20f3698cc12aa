"""`fedbus demo --chaos`: processes are killed while the demo runs, and what became of its rounds is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from fedbus_schemas.report import RoundReport, RunReport

from fedbus.api.federation import Federation
from fedbus.runtime.stack import BROKER, LocalStack

FIRST_ROUND = 2


@dataclass(frozen=True, slots=True)
class Strike:
    """Who is killed in which round."""

    number: int
    victims: tuple[str, ...]

    @property
    def said(self) -> str:
        """In words."""
        names = [name if name.startswith("w") else f"the {name}" for name in self.victims]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def strikes(rounds: int, workers: Sequence[str]) -> list[Strike]:
    """One in each round from the second on; the last one is of several at once."""
    victims = [
        ("aggregator",),
        (BROKER,),
        (workers[-1],),
        ("planner",),
        (BROKER, "planner", "aggregator", "evaluator", workers[0]),
    ]
    return [Strike(number, each) for number, each in enumerate(victims, FIRST_ROUND) if number <= rounds]


async def strike(
    stack: LocalStack, federation: Federation, run: str, planned: Sequence[Strike], say: Callable[[str], None]
) -> None:
    """SIGKILL whoever is due, as soon as its round has an update or has begun to wait for one."""
    due = {each.number: each for each in planned}
    async for report in federation.watch(run):
        if not due:
            return
        number = report.rounds[-1].round if report.rounds else 0
        if (each := due.pop(number, None)) is not None:
            say(f"chaos: kill -9 of {each.said}, in round {number}")
            for name in each.victims:
                await asyncio.to_thread(stack.end, name)


def story(report: RunReport, planned: Sequence[Strike]) -> list[str]:
    """What became of the rounds in which somebody was killed."""
    done = {each.round: each for each in report.rounds}
    struck = {each.number for each in planned}
    # The first round starts the trainers.
    calm = [r.seconds for n, r in done.items() if n >= FIRST_ROUND and n not in struck and r.seconds]
    lines = ["what happened"]
    lines += [f"  round {each.number}: {each.said} killed; {_told(done[each.number])}"
              for each in planned if each.number in done]  # fmt: skip
    counted = sum(each.accepted for each in report.rounds)
    missing = sum(len(each.cohort) - each.accepted for each in report.rounds)
    compared = f"; a round in peace took {median(calm):.2f} s" if calm else ""
    lines.append(f"  {len(done)} rounds, {counted} updates counted, {missing} missing{compared}")
    return lines


def _told(r: RoundReport) -> str:
    lost = "".join(f", {each.worker} lost: {each.reason}" for each in r.lost)
    return f"it {r.state} after {r.seconds or 0:.2f} s with {r.accepted} of {len(r.cohort)} updates{lost}"

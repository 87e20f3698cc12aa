"""A worker's score of a model on its own data: evaluated in its child, stored as one message.

What keeps a worker from it is reported as the reason, and never keeps the worker from training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from fedbus.base.clock import random_token
from fedbus.base.errors import FedbusError
from fedbus.bus import Bus
from fedbus.bus.modelcache import CachedModel
from fedbus.bus.store import Publisher
from fedbus.rounds.evaluating import last_score_s
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Evaluated, Site
from fedbus_schemas import subjects
from fedbus_schemas.update import EvaluationReport

from fedbus_worker.assignments import Assignment

# Runs whose last scored model is remembered, so that a restarted worker does not score it again.
RUNS_KEPT = 100


class Scoring:
    """Scores models, each once per run.

    Args:
        bus: the connection, as the worker.
        trainer: its child.
        folder: where it notes what it has scored.
    """

    def __init__(self, bus: Bus, trainer: Trainer, folder: Path) -> None:
        self._bus = bus
        self._trainer = trainer
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def is_wanted(self, assignment: Assignment) -> bool:
        """Whether the assignment asks for a score that this worker has not sent."""
        model = assignment.announcement.score
        if model is None:
            return False
        try:
            return self._note(assignment).read_text() != model
        except FileNotFoundError:
            return True

    async def score(
        self, assignment: Assignment, site: Site, load: Callable[[str], Awaitable[CachedModel]]
    ) -> EvaluationReport:
        """Evaluate the model that the assignment asks for, and store the report.

        Args:
            assignment: the seat.
            site: where its data is.
            load: downloads a model.

        Raises:
            BusError: the broker is away, or refuses the report.
        """
        announcement, member = assignment.announcement, assignment.member
        digest = announcement.score
        assert digest is not None
        scored, failed = Evaluated(0), None
        limit = last_score_s(announcement.plan) if assignment.only_scores else None
        try:
            # An open round ends this by closing; nothing else ends the score of a last model.
            async with asyncio.timeout(limit):
                model = await load(digest)
                plan = announcement.plan
                scored = await self._trainer.evaluate(plan.task, plan.train, site, model.table, model.path)
        except TimeoutError:
            failed = f"the evaluation took longer than {limit:g} s"
        except FedbusError as error:
            if error.retryable:
                raise
            failed = error.message[:2000]
        report = EvaluationReport(
            run=announcement.run,
            round=announcement.round,
            worker=member.worker,
            node=member.node,
            attempt=random_token(),
            model=digest,
            num_examples=scored.num_examples,
            metrics=dict(scored.metrics),
            failed=failed,
        )
        seat = (report.run, report.round, report.worker, report.node, report.attempt)
        await Publisher(self._bus).put(subjects.update(*seat, "evaluation"), report.pack())
        self._remember(assignment, digest)
        return report

    def _remember(self, assignment: Assignment, digest: str) -> None:
        self._note(assignment).write_text(digest)
        notes = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in notes[:-RUNS_KEPT]:
            old.unlink()

    def _note(self, assignment: Assignment) -> Path:
        return self._folder / f"{assignment.ref.run}.{assignment.member.node}"

"""Members score the model on their own data before they train; their scores become the round's metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.bus.registry import Registry
from fedbus.bus.store import list_subjects
from fedbus.rounds.evaluating import federated_score
from fedbus_evaluator.service import Evaluator
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement
from fedbus_schemas.report import RunReport
from fedbus_schemas.update import EvaluationReport
from support.federation import Parties, federation
from support.natsd import Stack
from support.scripted import Scripted

TASK = "scores_for_tests:Scores"
# Labels steer it: `examples` and `bias` are its data, `blind` fails to score. It keeps what it said.
SCORES = """
import json
import numpy as np
from fedbus import Evaluated, Trained, TrainingTask

class Scores(TrainingTask):
    def load(self, site):
        if site.held_out:
            raise FileNotFoundError("no held-out data here")
        return site.labels

    def model(self, seed):
        return {"w": np.zeros(1000, np.float32)}

    def arrays(self, model):
        return model

    def set_arrays(self, model, arrays):
        model.update(arrays)

    def train(self, model, labels, step):
        model["w"] += np.float32(1 + int(labels["examples"]))
        return Trained(int(labels["examples"]), {})

    def evaluate(self, model, labels):
        if "blind" in labels:
            raise OSError("the disk of this host is gone")
        said = [int(labels["examples"]), float(model["w"].mean()) * float(labels["bias"])]
        with open(labels["name"] + ".said", "a") as file:
            file.write(json.dumps(said) + "\\n")
        return Evaluated(said[0], {"loss": said[1]})
"""
PLAN: dict[str, Any] = {"task": TASK, "rounds": 3, "evaluate": {"central": False, "federated": True}}


async def members(parties: Parties, folder: Path, *names: str, blind: str = "") -> None:
    """Three workers with data of their own; their names are new, for an earlier run asks its own members."""
    (folder / "scores_for_tests.py").write_text(SCORES)
    for name, examples, bias in zip(names, (1, 3, 6), (0.5, 2.0, -1.0), strict=True):
        labels = {"name": name, "examples": str(examples), "bias": str(bias)}
        if name == blind:
            labels["blind"] = "yes"
        await parties.join(name, labels=labels, tasks=(TASK,))


def oracle(folder: Path, number: int, *workers: str) -> float:
    """The mean of what the tasks kept of their n-th score, weighted by examples."""
    said = [json.loads((folder / f"{w}.said").read_text().splitlines()[number - 1]) for w in workers]
    return float(np.average([loss for _, loss in said], weights=[examples for examples, _ in said]))


def losses(report: RunReport) -> list[float | None]:
    return [r.metrics.get("federated_loss") for r in report.rounds]


async def test_the_rounds_metrics_are_the_mean_of_what_the_members_said(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:
        await members(parties, tmp_path, "mean1", "mean2", "mean3")
        plan = PLAN | {"cohort": {"min": 3}, "retain": {"rounds": 0}}
        report = await parties.finished(await parties.start(plan, "scored"))
        assert losses(report) == [
            pytest.approx(oracle(tmp_path, number, "mean1", "mean2", "mean3")) for number in (1, 2, 3)
        ]
        assert [r.reason for r in report.rounds] == [None] * 3
        for name in ("mean1", "mean2", "mean3"):
            assert len((tmp_path / f"{name}.said").read_text().splitlines()) == 3, "each model once"
        for number in (1, 2, 3):
            entry = parties.round("scored", number).federated
            assert entry is not None
            assert entry.federated is not None
            assert (entry.federated.workers, entry.federated.num_examples) == (
                ["mean1", "mean2", "mean3"],
                10,
            )

        async def registered() -> bool:
            version, _ = await Registry(parties.operator).get("scored", 3)
            return version is not None and version.metrics == report.rounds[2].metrics

        await parties.until_true(registered, "the last model is registered with its cohort's score")


async def test_who_cannot_score_is_named_and_blocks_nothing(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member whose evaluation fails trains all the same; the hub without held-out data says so too."""
    monkeypatch.chdir(tmp_path)
    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:
        await members(parties, tmp_path, "b1", "b2", "b3", blind="b2")
        plan = PLAN | {"cohort": {"min": 3}, "evaluate": {"central": True, "federated": True}}
        report = await parties.finished(await parties.start(plan, "blind"))
        assert [r.accepted for r in report.rounds] == [3, 3, 3]
        assert losses(report) == [pytest.approx(oracle(tmp_path, n, "b1", "b3")) for n in (1, 2, 3)]
        for number in (1, 2, 3):
            round_ = parties.round("blind", number)
            assert round_.evaluated is not None
            assert "no held-out data here" in (round_.evaluated.failed or "")
            assert round_.federated is not None
            assert round_.federated.federated is not None
            (failed,) = round_.federated.federated.failed
            assert (failed.worker, failed.code) == ("b2", "failed")
            assert "the disk of this host is gone" in failed.reason


async def test_a_restarted_evaluator_adds_up_what_was_said_while_it_was_gone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await members(parties, tmp_path, "u1", "u2", "u3")
        run = await parties.start(PLAN | {"rounds": 1, "cohort": {"min": 3}}, "unheard")
        await parties.until(lambda: parties.round(run, 1).ended, "the round ends")

        async def all_said() -> bool:
            pattern = subjects.update(run, 1, "*", "*", "*", "evaluation")
            return len(await list_subjects(parties.operator, subjects.UPDATES, pattern)) == 3

        await parties.until_true(all_said, "all members have scored the last model")
        await parties.add("evaluator", lambda bus: Evaluator(bus, tmp_path).run())
        await parties.until(lambda: parties.round(run, 1).federated, "the scores are added up")
        report = await parties.api.run(run)
        assert losses(report) == [pytest.approx(oracle(tmp_path, 1, "u1", "u2", "u3"))]


async def test_reports_that_lie_or_never_come_do_not_count(stack: Stack, tmp_path: Path) -> None:
    """Scripted members: one honest, one that names another, one that sends rubbish, one that says nothing."""
    ones = np.ones(25_000, np.float32)
    may_send = asyncio.Event()

    def member(*reports: Any) -> Any:
        async def answer(worker: Scripted, news: Announcement) -> None:
            await may_send.wait()
            for number, make in enumerate(reports if news.score else ()):
                data = make(worker.name, news, f"a{number}")
                seat = (news.run, news.round, worker.name, "0", f"a{number}", "evaluation")
                await worker.bus.request(subjects.update(*seat), data)
            await worker.send(worker.make(news, ones))

        return answer

    def says(loss: float, **changes: Any) -> Any:
        def make(name: str, news: Announcement, attempt: str) -> bytes:
            values = {"run": news.run, "round": news.round, "worker": name, "attempt": attempt}
            values |= {"model": news.score, "num_examples": 2, "metrics": {"loss": loss}}
            return EvaluationReport.model_validate(values | changes).pack()

        return make

    async with federation(stack.credentials, tmp_path, workers=(), evaluator=True) as parties:
        await parties.script("honest", member(says(3.0), says(99.0)))  # the first of two counts
        await parties.script("liar", member(says(7.0, worker="honest"), says(7.0, round=1)))
        await parties.script("rubbish", member(lambda *_: b"\xc1", says(7.0, model="0" * 64)))
        await parties.script("quiet", member())
        may_send.set()
        plan = {"rounds": 2, "cohort": {"min": 4}, "evaluate": PLAN["evaluate"]}
        run = await parties.start(plan, "lying-scores")
        await parties.until(lambda: parties.round(run, 1).federated, "round 1 has its score")
        round_, scorers = parties.round(run, 1), parties.round(run, 2)
        assert round_.federated is not None
        score = round_.federated.federated
        assert score is not None
        assert (score.metrics, score.workers) == ({"loss": 3.0}, ["honest"])
        assert score.failed == federated_score(scorers, {("honest", "0"): honest(run)}).failed
        assert {each.worker for each in score.failed} == {"liar", "rubbish", "quiet"}


def honest(run: str) -> EvaluationReport:
    return EvaluationReport(
        run=run, round=2, worker="honest", attempt="a0", model="0" * 64, num_examples=2, metrics={"loss": 3.0}
    )

"""Whole rounds over real services, agents and trainer children: what they compute, what they leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.bus import Bus
from fedbus.bus.runs import Runs
from fedbus.bus.store import call, list_subjects
from fedbus.codec import Vector, codec
from fedbus_schemas import subjects
from fedbus_schemas.log import AUTHORS, Rejected, decode_entry
from fedbus_schemas.messages import Announcement
from fedbus_schemas.report import RoundReport
from support.federation import Parties, federation
from support.natsd import Stack
from support.roundlog import entries
from support.scripted import Scripted
from support.tasks import ELEMENTS, TASK, walk, write_walk

EXAMPLES = {"w1": 1, "w2": 2, "w3": 5}


def mean_of_saved(folder: Path, number: int, workers: list[str]) -> np.ndarray[Any, Any]:
    """The oracle: the example-weighted mean of what the tasks kept, in float64."""
    deltas = [np.load(folder / f"{name}.{number}.npy").astype(np.float64) for name in workers]
    return np.average(deltas, axis=0, weights=[EXAMPLES[name] for name in workers])


@pytest.mark.parametrize("name", ["dense", "bf16", "int8"])
async def test_models_are_the_weighted_mean_of_what_the_tasks_did(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_walk(tmp_path)
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for worker, examples in EXAMPLES.items():
            labels = {"name": worker, "examples": str(examples)}
            await parties.join(worker, labels=labels, tasks=(TASK,))
        run = await parties.start(walk(rounds=3, codec={"up": name}), f"mean-{name}")
        report = await parties.finished(run)
        assert [r.round for r in report.rounds] == [1, 2, 3]
        first = parties.round(run, 0).aggregated
        assert first
        base = await parties.model(first.model)
        initial = np.random.default_rng(7).normal(size=ELEMENTS).astype(np.float32)
        np.testing.assert_array_equal(base, initial, err_msg="first weights travel as they are")
        for r in report.rounds:
            assert sorted(r.cohort) == ["w1", "w2", "w3"]
            assert {u.worker: u.weight for u in r.accepted_updates} == EXAMPLES
            expected = base + mean_of_saved(tmp_path, r.round, r.cohort)
            allowed = sum(
                EXAMPLES[w] * bound(name, np.load(tmp_path / f"{w}.{r.round}.npy")) for w in r.cohort
            ) / sum(EXAMPLES.values())
            made = await parties.model(r.model)
            assert (np.abs(made - expected) <= allowed + 1e-5).all(), (
                f"{run}/{r.round}: off by up to {np.abs(made - expected).max():.3g}, "
                f"{name} allows {np.max(allowed):.3g}"
            )
            assert r.metrics == {"train_examples": pytest.approx((1 + 4 + 25) / 8)}
            base = made


def bound(name: str, x: Vector) -> np.ndarray[Any, Any]:
    """What a codec may lose, chunk by chunk as it travels."""
    coded = codec(name)
    whole = 258_048
    parts = [coded.bound(x[start : start + whole]) for start in range(0, len(x), whole)]
    return np.concatenate(parts)


async def test_a_round_leaves_log_and_streams_as_designed(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path) as parties:
        run = await parties.start({"rounds": 3, "cohort": {"min": 3}, "retain": {"rounds": 1}}, "leaves")
        report = await parties.finished(run)
        assert [(r.state, r.accepted, r.reason) for r in report.rounds] == [("finished", 3, None)] * 3
        for number in range(4):
            log = await entries(parties.operator, run, number)
            read = [decode_entry(each.data) for each in log]
            assert [subjects.parse_log(each.subject) for each in log] == [
                (run, number, AUTHORS[entry.kind]) for entry in read
            ]
            kinds = [entry.kind for entry in read if entry.kind not in ("accepted", "rejected")]
            assert kinds == ["opened", "closing", "aggregated", "finished"]
            before = [entry.kind for entry in read[: [e.kind for e in read].index("closing")]]
            if number == 0:  # one first model is enough: the other one may come before or after `closing`
                before = [kind for kind in before if kind != "rejected"]
            counted = [u.worker for entry in read if entry.kind == "accepted" for u in entry.updates]
            # Two members make the first model, and one is enough.
            may = {"accepted", "rejected"} if number == 0 else {"accepted"}
            assert before[0] == "opened"
            assert set(before[1:]) <= may
            refused = [entry.code for entry in read if isinstance(entry, Rejected)]
            assert set(refused) <= ({"not-needed"} if number == 0 else set())
            if number:
                assert sorted(counted) == ["w1", "w2", "w3"]
                assert "rejected" not in [entry.kind for entry in read]
            else:
                assert len(counted) == 1, "the first of two members makes the first model"
        await check_streams(parties, run, report.rounds)
        assert await parties.api.run(run) == report
        assert await parties.ended(run) == report, "who watches late sees all rounds too"


async def is_done(bus: Bus, run: str) -> bool:
    return (await Runs(bus).get(run))[0].done


async def check_streams(parties: Parties, run: str, rounds: list[RoundReport]) -> None:
    bus = parties.operator
    config = {
        name: (await call(bus, f"STREAM.INFO.{name}"))["config"]
        for name in (subjects.ROUNDS, subjects.ANNOUNCE, subjects.INBOX, subjects.UPDATES, subjects.MODELS)
    }
    assert {name: each["subjects"] for name, each in config.items()} == {
        "FB_ROUNDS": ["fb.round.*.*.log.*"],
        "FB_ANNOUNCE": ["fb.announce.*"],
        "FB_INBOX": ["fb.inbox.*"],
        "FB_UPDATES": ["fb.update.>"],
        "FB_MODELS": ["fb.model.>"],
    }
    for name in (subjects.UPDATES, subjects.MODELS):
        assert config[name]["max_msgs_per_subject"] == 1
        assert config[name]["discard"] == "new"
        assert config[name]["discard_new_per_subject"]
    assert config[subjects.ROUNDS]["republish"]["dest"].startswith("fb.log.")
    assert await list_subjects(bus, subjects.ANNOUNCE, subjects.announce(run)) == {f"fb.announce.{run}": 1}
    # An update of one chunk travels inside its manifest: one message each. retain.rounds is 1.
    await parties.until_true(lambda: is_done(bus, run), "the run's record says that it is over")
    kept = Counter(
        subjects.parse_update(s)[1:3] + subjects.parse_update(s)[5:]
        for s in await list_subjects(bus, subjects.UPDATES, f"fb.update.{run}.>")
    )
    assert kept == {(number, f"w{i}", "manifest"): 1 for number in (2, 3) for i in (1, 2, 3)}
    for r in rounds:
        assert await list_subjects(bus, subjects.MODELS, subjects.model_manifest(r.model or "")) != {}


async def test_a_run_starts_from_the_last_model_of_another(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=["w1"]) as parties:
        first = await parties.start({"train": {"value": 1.0}, "rounds": 2}, "base")
        assert (await parties.model((await parties.finished(first)).model) == 2.0).all()
        second = await parties.start({"train": {"value": 0.5}, "model": {"from": first}}, "on-top")
        report = await parties.finished(second)
        assert (await parties.model(report.model) == 2.5).all()
        assert parties.round(second, 0).opened is None, "no first model is made"
        assert (made := parties.round(first, 2).aggregated)
        assert parties.round(second, 1).opened.base == made.model  # type: ignore[union-attr]


async def test_two_runs_at_once(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path) as parties:
        plans = {"left": 1.0, "right": -3.0}
        for name, value in plans.items():
            await parties.start({"train": {"value": value}, "rounds": 3, "cohort": {"min": 3}}, name)
        reports = await asyncio.gather(*map(parties.finished, plans))
        for report, value in zip(reports, plans.values(), strict=True):
            assert [r.accepted for r in report.rounds] == [3, 3, 3], report.run
            assert (await parties.model(report.model) == 3 * value).all(), report.run


async def test_parts_are_dealt_in_join_order_and_kept(stack: Stack, tmp_path: Path) -> None:
    """Also by a planner that takes over, and when somebody joins later."""
    plan = {"rounds": 3, "cohort": {"min": 2}, "data": {"partition": "iid", "parts": 3}}
    may_answer = {1: asyncio.Event(), 2: asyncio.Event(), 3: asyncio.Event()}

    async def answer(worker: Scripted, news: Announcement) -> None:
        await may_answer[news.round].wait()
        await worker.send(worker.make(news, np.ones(25_000, np.float32)))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in ("zoe", "ada"):
            await parties.script(name, answer)
        run = await parties.start(plan, "dealt")
        await parties.until(lambda: parties.round(run, 1).opened, "round 1 opens")
        await parties.script("bob", answer)
        may_answer[1].set()
        await parties.until(lambda: parties.round(run, 2).opened, "round 2 opens")
        await parties.planner.crash()
        may_answer[2].set()
        await parties.planner.start()
        may_answer[3].set()
        await parties.finished(run)
        dealt = [[(m.worker, m.partition) for m in parties.round(run, n).members] for n in (1, 2, 3)]
    assert sorted(dealt[0]) == [("ada", 1), ("zoe", 0)]
    assert sorted(dealt[1]) == [("ada", 1), ("bob", 2), ("zoe", 0)]
    assert set(dealt[2]) <= set(dealt[1]), "after the takeover"

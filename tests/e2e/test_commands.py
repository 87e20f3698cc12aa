"""Rounds by hand: the processes as a person starts them, and the commands that run and read rounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fedbus.rounds.admission import admit, read_plan
from fedbus_schemas.report import RoundReport, RunReport
from support.commands import Shell, shell
from support.natsd import wait_until
from support.processes import working_in

PLAN = Path(__file__).parents[2] / "examples" / "digits" / "plan.yaml"
# DESIGN's ROUND, key for key, with the reason's code and who was left out: scripts rely on it.
ROUND = {
    "code",
    "excluded",
    "round",
    "state",
    "reason",
    "cohort",
    "accepted",
    "accepted_updates",
    "rejected",
    "waiting",
    "lost",
    "opened_at",
    "closed_at",
    "seconds",
    "bytes_up",
    "bytes_down",
    "model",
    "trace_id",
    "metrics",
    "kpis",
}
UPDATE = {"worker", "node", "weight", "bytes", "digest", "codec"}
WORKERS = ("ann", "bob", "cy")


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder in which everything but an evaluator runs, started one by one as the README says."""
    folder = tmp_path_factory.mktemp("hand")
    shutil.copy(PLAN, folder)
    with shell(folder) as typed:
        typed.start("broker", "python", "-m", "fedbus.runtime.broker")
        typed.says("broker", "nats://")
        for service in ("planner", "aggregator"):
            typed.start(service, "python", "-m", f"fedbus_{service}")
        for name in WORKERS:
            typed.start(name, "fedbus-worker", "join", "--name", name, "--state", "state")
        for name in WORKERS:
            typed.says(name, "joined")
        typed.says("planner", "ready")
        typed.says("aggregator", "ready")
        yield typed
        assert typed.stop() == dict.fromkeys(["broker", "planner", "aggregator", *WORKERS], 0)


@pytest.fixture(scope="module")
def trained(hand: Shell) -> dict[str, Any]:
    """What the first `round start --watch --json` printed."""
    done = hand.run("fedbus", "round", "start", "plan.yaml", "--rounds", "3", "--watch", "--json")
    assert done.code == 0, done.err
    printed: dict[str, Any] = json.loads(done.out)
    return printed


def test_start_watches_the_run_to_its_trained_model(trained: dict[str, Any]) -> None:
    report = RunReport.model_validate(trained)
    assert (report.run, report.state, report.reason) == ("run-0001", "finished", None)
    assert [(r.round, r.state, r.accepted) for r in report.rounds] == [
        (number, "finished", 3) for number in (1, 2, 3)
    ]
    assert report.model == report.rounds[-1].model
    losses = [r.metrics["train_loss"] for r in report.rounds]
    assert losses[2] < losses[0], f"nothing was learnt: {losses}"


def test_show_prints_the_round_that_scripts_rely_on(hand: Shell, trained: dict[str, Any]) -> None:
    done = hand.run("fedbus", "round", "show", "run-0001/2", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert set(printed) == ROUND
    assert [set(update) for update in printed["accepted_updates"]] == [UPDATE] * 3
    report = RoundReport.model_validate(printed)
    assert printed == trained["rounds"][1]
    assert sorted(report.cohort) == list(WORKERS)
    assert sum(u.weight for u in report.accepted_updates) > 1000, "the images of all three parts"
    assert len(report.trace_id) == 32
    whole = json.loads(hand.run("fedbus", "round", "show", "run-0001", "--json").out)
    assert whole == trained
    table = hand.run("fedbus", "round", "show", "run-0001/2")
    assert ", ".join(report.cohort) in table.out
    assert report.model
    assert report.model in table.out


def test_list_has_items(hand: Shell, trained: dict[str, Any]) -> None:
    runs = json.loads(hand.run("fedbus", "round", "list", "--json").out)["items"]
    assert [(r["run"], r["state"], r["task"], r["rounds_done"]) for r in runs][:1] == [
        ("run-0001", "finished", "digits", 3)
    ]
    rounds = json.loads(hand.run("fedbus", "round", "list", "run-0001", "--json").out)["items"]
    assert rounds == trained["rounds"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("close.dedline_s=30", "did you mean 'deadline_s'"),
        ("codec.up=int9", "did you mean 'int8'"),
        ("strategy=fedavgg", "did you mean 'fedavg'"),
        ("rounds=many", "rounds: Input should be a valid integer"),
        ("train.learning_rat=1", "learning_rat"),
        ("cohort.min=0", "cohort.min"),
    ],
)
def test_a_wrong_plan_is_refused_at_the_prompt(hand: Shell, setting: str, said: str) -> None:
    done = hand.run("fedbus", "round", "start", "plan.yaml", "--set", setting)
    assert done.code == 30
    assert done.err.startswith("error[")
    assert said in done.err
    printed = hand.run("fedbus", "round", "start", "plan.yaml", "--set", setting, "--json")
    assert printed.code == 30
    error = json.loads(printed.out)["error"]
    assert set(error) == {"code", "message", "hint"}
    assert f"error[{error['code']}]: {error['message']}" in done.err


def test_a_watched_run_that_aborts_fails(hand: Shell, trained: dict[str, Any]) -> None:
    broken = ("--set", "task=noop", "--set", "train={seconds: 20.0}", "--set", "close.deadline_s=1")
    done = hand.run("fedbus", "round", "start", "plan.yaml", *broken, "--watch", "--json")
    assert done.code == 30
    report = RunReport.model_validate_json(done.out)
    assert report.state == "aborted"
    assert report.reason == "deadline of 1 s passed: have 0 updates, quorum 2"
    assert f"error[run-aborted]: {report.run} was aborted: {report.reason}" in done.err


def test_unknown_runs_and_rounds_are_named(hand: Shell, trained: dict[str, Any]) -> None:
    done = hand.run("fedbus", "round", "show", "run-0011")
    assert (done.code, done.err.splitlines()[0]) == (
        30,
        "error[unknown-run]: no run is called 'run-0011'; did you mean 'run-0001'?",
    )
    assert hand.run("fedbus", "round", "show", "run-0001/9").code == 30
    assert hand.run("fedbus", "round", "show", "run-0001/x").code == 10


def test_without_a_broker_there_is_a_hint(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        done = typed.run("fedbus", "round", "list")
        assert done.code == 10
        assert done.err.startswith("error[config-error]: no broker: ")
        assert "hint: start one with: " in done.err
        joined = typed.run("fedbus-worker", "join", "--state", "state")
        assert (joined.code, "hint: " in joined.err) == (10, True)


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        for command in (
            ("fedbus", "round", "list"),
            ("fedbus-worker", "join"),
            ("python", "-m", "fedbus_planner"),
        ):
            done = typed.run(*command, env={"FEDBUS_DIRR": "x"})
            assert done.code == 10, command
            assert "FEDBUS_DIRR; did you mean FEDBUS_DIR?" in done.err


def test_the_example_plan_is_a_plan() -> None:
    values = yaml.safe_load(PLAN.read_text())
    plan = read_plan(values)
    admit(plan)
    assert set(values) == set(type(plan).model_fields) - {"model", "privacy"}


def test_the_demo_goes_on_whoever_is_killed_and_tells_what_happened(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        done = typed.run("fedbus", "demo", "--chaos", "--rounds", "3", "--workers", "2", "--json")
    assert done.code == 0, done.err
    rounds = json.loads(done.out)["rounds"]
    assert [r["accepted"] for r in rounds] == [2, 2, 2]
    story = done.err.partition("what happened\n")[2].splitlines()
    assert story[0].startswith("  round 2: the aggregator killed; it finished after ")
    assert story[1].startswith("  round 3: the broker killed; it finished after ")
    assert story[2].startswith("  3 rounds, 6 updates counted, 0 missing")
    for name in ("aggregator", "broker"):
        assert f"{name} was ended by SIGKILL; started again after " in done.err


def test_the_demo_trains_digits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        done = typed.run("fedbus", "demo", "--json")
    assert done.code == 0, done.err
    report = RunReport.model_validate_json(done.out)
    assert (report.state, len(report.rounds)) == ("finished", 10)
    assert [r.accepted for r in report.rounds] == [4] * 10
    accuracy = [r.metrics["accuracy"] for r in report.rounds]
    # One round may fall back by 0.07, as the parts are uneven and dealt out in join order.
    assert max(accuracy[:6]) >= 0.90, f"held-out accuracy by round: {accuracy}"
    assert accuracy[-1] >= 0.93, f"held-out accuracy by round: {accuracy}"
    home = tmp_path / ".fedbus" / "demo"
    assert (home / "run-0001-accuracy.png").read_bytes().startswith(b"\x89PNG")
    for said in (f"final held-out accuracy: {accuracy[-1]:.4f}", f"kept in {home}", "try next:", "1.00 ┤"):
        assert said in done.err
    wait_until(lambda: working_in(tmp_path) == [], "every process of the demo is gone", 10.0)

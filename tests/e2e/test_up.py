"""`fedbus up`: what it starts, what dies and comes back, and what a new start finds."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedbus.runtime.rights import SERVICES
from fedbus_schemas.report import RunReport
from support.commands import Shell, shell
from support.natsd import wait_until
from support.processes import alive, processes, working_in

PLAN = """
task: noop
rounds: 8
cohort: {min: 2}
train: {seconds: 0.5}
close: {quorum: 2, deadline_s: 60}
evaluate: {central: false}
"""
WORKERS = ("ann", "bob")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder in which `fedbus up` and two workers run."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "plan.yaml").write_text(PLAN)
    with shell(folder) as typed:
        typed.start("up", "fedbus", "up")
        typed.says("up", "everything stops with Ctrl-C")
        for name in WORKERS:
            typed.start(name, "fedbus-worker", "join", "--name", name, "--state", "state")
            typed.says(name, "joined")
        yield typed


def pids(folder: Path) -> dict[str, int]:
    """Every process of the stack, as `stack.json` names them."""
    stack = json.loads((folder / ".fedbus" / "stack.json").read_text())
    return {"broker": stack["broker_pid"], **stack["processes"]}


def finished(typed: Shell, run: str) -> RunReport:
    done = typed.run("fedbus", "round", "watch", run, "--json")
    assert done.code == 0, done.err
    report = RunReport.model_validate_json(done.out)
    assert report.state == "finished"
    for round_ in report.rounds:
        assert sorted(update.worker for update in round_.accepted_updates) == list(WORKERS), round_
    return report


def test_it_says_what_to_do_next(typed: Shell) -> None:
    said = typed.log("up")
    assert re.search(r"broker on nats://127\.0\.0\.1:\d+, with ", said)
    assert "fedbus-worker join\n" in said
    assert "fedbus invite create" in said
    assert str(typed.folder / ".fedbus" / "logs") in said
    named = pids(typed.folder)
    assert set(named) == {"broker", *SERVICES}
    assert all(alive(pid) for pid in named.values())


def test_a_second_one_in_the_same_folder_is_refused(typed: Shell) -> None:
    done = typed.run("fedbus", "up")
    assert done.code == 10
    assert "error[config-error]: another stack runs in " in done.err


def test_what_is_killed_in_mid_run_is_started_again_and_the_run_ends(typed: Shell) -> None:
    assert typed.run("fedbus", "round", "start", "plan.yaml", "--name", "killed").code == 0
    typed.start("watch", "fedbus", "round", "watch", "killed")
    typed.says("watch", "killed/1 finished")
    for name in ("broker", *SERVICES):
        pid = pids(typed.folder)[name]
        os.kill(pid, signal.SIGKILL)
        typed.says("up", f"{name} was ended by SIGKILL")
        wait_until(lambda name=name, pid=pid: pids(typed.folder)[name] != pid, f"{name} is there again")  # type: ignore[misc]
        (line,) = [each for each in typed.log("up").splitlines() if f"{name} was ended" in each]
        said = rf"fedbus up: {name} was ended by SIGKILL; started again after \d+\.\d s as process \d+"
        assert re.fullmatch(said, line), line
    assert len(finished(typed, "killed").rounds) == 8
    assert typed.wait("watch") == 0
    watched = typed.log("watch")
    assert re.search(r"^connection to \S+ lost$", watched, re.M), watched
    assert re.search(r"^connected to \S+ again$", watched, re.M), watched
    for number in range(1, 9):
        assert watched.count(f"killed/{number} finished: 2/2 updates") == 1, watched


def test_a_run_can_be_aborted(typed: Shell) -> None:
    typed.run("fedbus", "round", "start", "plan.yaml", "--name", "wrong")
    done = typed.run("fedbus", "round", "abort", "wrong", "--reason", "wrong data")
    assert (done.code, done.out) == (0, "wrong aborted: wrong data\n")
    watched = typed.run("fedbus", "round", "watch", "wrong")
    assert watched.code == 30
    assert "error[run-aborted]: wrong was aborted: wrong data" in watched.err
    again = typed.run("fedbus", "round", "abort", "killed", "--json")
    assert (again.code, json.loads(again.out)["error"]["code"]) == (30, "run-ended")


def test_after_a_kill_nothing_is_left_and_a_new_one_carries_on(typed: Shell) -> None:
    """As after a restart of the machine, but for the workers, which reconnect by themselves."""
    assert typed.run("fedbus", "round", "start", "plan.yaml", "--name", "carried").code == 0
    before = pids(typed.folder)
    url = json.loads((typed.folder / ".fedbus" / "stack.json").read_text())["url"]
    parents = {process.pid: process.parent for process in processes()}
    os.kill(parents[parents[before["planner"]]], signal.SIGKILL)  # the planner's watchdog's parent
    wait_until(lambda: not any(map(alive, before.values())), "all that it had started is gone")
    typed.start("again", "fedbus", "up", "--json")
    typed.says("again", '"processes"')
    assert json.loads((typed.folder / ".fedbus" / "stack.json").read_text())["url"] == url
    assert len(finished(typed, "carried").rounds) == 8


def test_it_stops_everything(typed: Shell) -> None:
    named = pids(typed.folder)
    codes = typed.stop()
    assert (codes["again"], codes["ann"], codes["bob"]) == (0, 0, 0)
    assert typed.log("ann").endswith(" ann: stopped\n")
    assert not any(map(alive, named.values()))
    stack = json.loads((typed.folder / ".fedbus" / "stack.json").read_text())
    assert (stack["broker_pid"], stack["processes"]) == (None, {})
    wait_until(lambda: working_in(typed.folder) == [], "nothing is left", 10.0)


def test_a_second_signal_kills_what_does_not_stop(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        typed.start("up", "fedbus", "up")
        typed.says("up", "everything stops with Ctrl-C")
        named = pids(tmp_path)
        os.kill(named["planner"], signal.SIGSTOP)  # it hears nothing, least of all SIGTERM
        typed.signal("up", signal.SIGINT)
        typed.says("up", "stopping; Ctrl-C again kills")
        typed.signal("up", signal.SIGINT)
        assert typed.wait("up", timeout_s=8.0) == 0, "STOP_S was not waited for"
        assert "killed" in typed.log("up")
        wait_until(lambda: not any(map(alive, named.values())), "all of it is gone")


def test_a_standby_goes_on_when_the_aggregator_is_killed(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    with shell(tmp_path) as typed:
        typed.start("up", "fedbus", "up", "--standby")
        typed.says("up", "everything stops with Ctrl-C")
        assert "aggregator, evaluator, enroll, standby\n" in typed.log("up")
        for name in WORKERS:
            typed.start(name, "fedbus-worker", "join", "--name", name, "--state", "state")
        assert typed.run("fedbus", "round", "start", "plan.yaml", "--name", "stands").code == 0
        typed.start("watch", "fedbus", "round", "watch", "stands")
        typed.says("watch", "stands/1 finished")
        logs = {name: tmp_path / ".fedbus" / "logs" / f"{name}.log" for name in ("aggregator", "standby")}
        working, other = sorted(
            logs, key=lambda name: "this aggregator works now" not in logs[name].read_text()
        )
        assert "standing by: " in logs[other].read_text()
        os.kill(pids(typed.folder)[working], signal.SIGKILL)
        wait_until(
            lambda: "took over from the aggregator of " in logs[other].read_text(), f"{other} takes over"
        )
        assert len(finished(typed, "stands").rounds) == 8

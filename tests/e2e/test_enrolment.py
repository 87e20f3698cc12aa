"""Enrolment as a person types it: an invitation, a worker that joins by it, who is here, why, and goodbye."""

from __future__ import annotations

import json
from pathlib import Path

from support.commands import Shell, shell


def test_from_an_invitation_to_goodbye(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        typed.start("broker", "python", "-m", "fedbus.runtime.broker")
        typed.says("broker", "nats://")
        for service in ("planner", "aggregator", "enroll"):
            typed.start(service, "python", "-m", f"fedbus_{service}")
        for service in ("planner", "aggregator", "enroll"):
            typed.says(service, "ready")
        _joins_and_leaves(typed)


def _joins_and_leaves(typed: Shell) -> None:
    made = typed.run("fedbus", "invite", "create", "--site", "north", "--label", "gpu=yes", "--expires", "1h")
    assert made.code == 0, made.err
    (string,) = made.out.splitlines()
    assert string.startswith("fedbus://127.0.0.1:")
    assert "give --host" in made.err
    typed.start("ann", "fedbus-worker", "join", string, "--name", "ann", "--state", "state")
    typed.says("ann", "joined")
    typed.says("enroll", "ann joined from north")

    (worker,) = json.loads(typed.run("fedbus", "worker", "list", "--json").out)["items"]
    assert (worker["worker"], worker["site"], worker["state"]) == ("ann", "north", "here")
    assert "ann" in typed.run("fedbus", "worker", "show", "ann").out
    (invite,) = json.loads(typed.run("fedbus", "invite", "list", "--json").out)["items"]
    assert (invite["state"], invite["workers"]) == ("used-up", ["ann"])
    assert string.rpartition(".")[2] not in json.dumps(invite)

    again = typed.run("fedbus-worker", "join", string, "--name", "bob", "--state", "state")
    assert again.code == 60
    assert again.err.startswith("error[invite-refused]: ")
    assert "hint: ask whoever runs the federation" in again.err

    plan = typed.folder / "plan.yaml"
    plan.write_text("task: noop\ncohort: {min: 2, require: {site: north}}\n")
    assert typed.run("fedbus", "round", "start", "plan.yaml").code == 0
    typed.says("planner", "waiting")
    why = typed.run("fedbus", "worker", "why", "ann", "run-0001")
    assert "ann: it is eligible, and the run waits: have 1 of 2 eligible workers [waiting]" in why.out
    unknown = typed.run("fedbus", "worker", "why", "anne", "--json")
    assert json.loads(unknown.out)["error"]["code"] == "unknown-worker"

    (status,) = json.loads(typed.run("fedbus-worker", "status", "--state", "state", "--json").out)["items"][
        :1
    ]
    assert (status["worker"], status["running"]) == ("ann", True)
    left = typed.run("fedbus-worker", "leave", "ann", "--state", "state")
    assert (left.code, left.err) == (0, "")
    typed.says("enroll", "ann said goodbye")
    gone = typed.run("fedbus-worker", "leave", "ann", "--state", "state")
    assert gone.code == 60

    # Later the saved credential does, without the string.
    typed.start("ann-again", "fedbus-worker", "join", "--name", "ann", "--state", "state")
    typed.says("ann-again", "joined")
    typed.says("enroll", "ann is back")

"""A federation over TLS as a person types it: services, an invitation, a worker, a round."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

from fedbus.runtime.accounts import Accounts
from fedbus.runtime.stackfile import read_stack
from support.commands import Shell, shell
from support.natsd import wait_until
from support.tlsd import CA, OTHER_CA, tls_block

PLAN = "task: digits-linear\nrounds: 1\ndata: {parts: 1}\ncohort: {min: 1}\nevaluate: {central: false}\n"


def encrypt(folder: Path) -> str:
    """Have the running broker of a stack demand TLS; returns its address."""
    stack = read_stack(folder)
    assert stack is not None
    assert stack.broker_pid is not None
    with (folder / "broker" / "server.conf").open("a") as config:
        config.write(tls_block())
    os.kill(stack.broker_pid, signal.SIGHUP)
    host, port = stack.url.removeprefix("nats://").split(":")

    def demands() -> bool:
        with socket.create_connection((host, int(port)), 5) as connection:
            return b'"tls_required":true' in connection.makefile("rb").readline()

    wait_until(demands, "it demands TLS")
    return f"{host}:{port}"


def test_a_round_over_tls(tmp_path: Path) -> None:
    with shell(tmp_path) as typed:
        typed.start("broker", "python", "-m", "fedbus.runtime.broker")
        typed.says("broker", "nats://")
        folder = tmp_path / ".fedbus"
        address = encrypt(folder)

        def url(name: str) -> str:
            return Accounts(folder).credentials(name).to_url().replace("nats://", "tls://")

        for service in ("planner", "aggregator", "enroll"):
            command = ("python", "-m", f"fedbus_{service}", "--dir", ".fedbus")
            typed.start(service, *command, "--url", url(service), "--ca", CA)
        for service in ("planner", "aggregator", "enroll"):
            typed.says(service, f"ready on tls://{address}")
        _trains(typed, url("operator"))
        _trusts_nobody_else(typed, url("operator"))


def _trains(typed: Shell, operator: str) -> None:
    made = typed.run("fedbus", "invite", "create", "--site", "north", "--url", operator, "--ca", CA)
    assert made.code == 0, made.err
    (string,) = made.out.splitlines()
    refused = typed.run(
        "fedbus-worker", "join", string, "--name", "ann", "--state", "state", "--ca", OTHER_CA
    )
    assert (refused.code, "error[tls-refused]: " in refused.err) == (50, True)
    typed.start("ann", "fedbus-worker", "join", string, "--name", "ann", "--state", "state", "--ca", CA)
    typed.says("ann", "joined")
    typed.signal("ann", signal.SIGKILL)
    typed.wait("ann")
    # The CA was saved with the credential. The folder has a stack, which would go before the saved one.
    elsewhere = typed.folder / "elsewhere"
    typed.start("ann", "fedbus-worker", "join", "--name", "ann", "--state", "state", "--dir", str(elsewhere))
    typed.says("ann", "joined")

    (typed.folder / "plan.yaml").write_text(PLAN)
    settings = {"FEDBUS_URL": operator, "FEDBUS_CA": CA}
    done = typed.run("fedbus", "round", "start", "plan.yaml", "--watch", "--json", env=settings)
    assert done.code == 0, done.err
    run = json.loads(done.out)
    assert (run["state"], run["rounds"][-1]["accepted"]) == ("finished", 1)


def _trusts_nobody_else(typed: Shell, operator: str) -> None:
    wrong = typed.run("fedbus", "worker", "list", "--url", operator, "--ca", OTHER_CA)
    assert wrong.code == 50
    assert wrong.err.startswith("error[tls-refused]: ")
    assert "\nhint: the CA that was given has not signed it" in wrong.err
    unknown = typed.run("fedbus", "worker", "list", "--url", operator)
    assert "hint: give the certificate of the broker's authority: --ca FILE, or FEDBUS_CA" in unknown.err
    local = typed.run("fedbus", "worker", "list", "--ca", CA)
    assert (local.code, "--ca is for a broker that a URL names" in local.err) == (10, True)

"""The embedded broker as a process: its address, its data, its life and death, and who may start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fedbus.base.errors import AuthRefused, BusUnavailable, ConfigError, ServerTooOld
from fedbus.bus import Bus
from fedbus.bus.provision import provision
from fedbus.runtime.broker import Broker, add_worker
from fedbus.runtime.identity import credentials_of
from fedbus.runtime.probe import Answer, probe
from fedbus.runtime.server import find_server
from fedbus.runtime.stackfile import read_stack
from support.natsd import broker, wait_until
from support.processes import alive
from support.raw import raw

PARENT = """
import sys
from pathlib import Path
from fedbus.runtime.broker import Broker
broker = Broker(Path(sys.argv[1]))
broker.start()
print(broker.pid, flush=True)
sys.stdin.read()
"""
ADDER = """
import sys
from pathlib import Path
from fedbus.runtime.broker import add_worker
for name in sys.argv[2:]:
    print(add_worker(Path(sys.argv[1]), name).to_url(), flush=True)
"""


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o700)
    return path


async def test_after_a_kill_it_is_back_at_the_same_address_with_its_data(tmp_path: Path) -> None:
    async with broker(tmp_path) as stack:
        address, first = stack.url, stack.broker.pid
        planner = stack.credentials("planner")
        bus = await Bus.connect(planner)
        await provision(bus)
        await bus.close()
        async with raw(planner) as client:
            await client.ask("fb.announce.r", b"round 1")
        stack.kill()
        assert not alive(first)
        stack.restart()
        assert stack.url == address
        assert stack.broker.pid != first
        async with raw(planner) as client:
            assert (await client.ask("$JS.API.DIRECT.GET.FB_ANNOUNCE.fb.announce.r")).data == b"round 1"


def test_a_later_start_keeps_address_and_accounts(tmp_path: Path) -> None:
    with Broker(tmp_path) as first:
        worker = add_worker(tmp_path, "w")
        planner = first.accounts.credentials("planner")
    assert probe(worker) is Answer.SILENT
    assert read_stack(tmp_path).broker_pid is None  # type: ignore[union-attr]
    with Broker(tmp_path) as second:
        assert second.url == worker.url
        assert add_worker(tmp_path, "w") == worker
        assert second.accounts.credentials("planner") == planner
        assert [probe(worker), probe(planner)] == [Answer.ACCEPTED] * 2


def test_it_dies_with_its_killed_parent_and_the_folder_is_free_again(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        before = read_stack(tmp_path)
        assert alive(pid)
        parent.kill()
    # Started at once: it waits for the old server to be gone before it touches the store.
    with Broker(tmp_path) as successor:
        assert not alive(pid)
        assert before
        assert successor.url == before.url


def test_a_second_broker_in_the_folder_is_refused(tmp_path: Path) -> None:
    with Broker(tmp_path) as first:
        with pytest.raises(ConfigError, match="another broker runs in"):
            Broker(tmp_path).start()
        outside = subprocess.run(
            [sys.executable, "-m", "fedbus.runtime.broker", "--dir", tmp_path], capture_output=True, text=True
        )
        assert outside.returncode == 10
        assert f"another broker runs in {tmp_path} (process {os.getpid()})" in outside.stderr
        assert first.running()
        assert probe(first.accounts.credentials("operator")) is Answer.ACCEPTED


def test_two_processes_add_workers_at_once(tmp_path: Path) -> None:
    with Broker(tmp_path) as running:
        names = [[f"{side}{number}" for number in range(8)] for side in "ab"]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ADDER, tmp_path, *part], stdout=subprocess.PIPE, text=True
            )
            for part in names
        ]
        printed = [process.communicate(timeout=60)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert running.accounts.workers() == sorted(names[0] + names[1])
        for part, urls in zip(names, printed, strict=True):
            credentials = [running.accounts.credentials(name) for name in part]
            assert [each.to_url() for each in credentials] == urls
            assert {probe(each) for each in credentials} == {Answer.ACCEPTED}


async def test_adding_a_worker_disturbs_nobody(tmp_path: Path) -> None:
    async with (
        broker(tmp_path) as stack,
        raw(stack.credentials("operator")) as client,
        # Before the reload: a greeting that meets one is cut, and a plain client does not try again.
        raw(stack.credentials("planner")) as planner,
    ):
        (announced,) = await client.listen("fb.announce.*")
        stack.credentials("new")
        stack.broker.reload()
        await planner.publish("fb.announce.r", b"still here")
        await planner.flush()
        assert (await announced.next_msg(10)).data == b"still here"
        assert client.refused == []


def test_a_worker_added_while_the_broker_is_down_is_known_after_its_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no broker was started"):
        add_worker(tmp_path, "early")
    with Broker(tmp_path):
        pass
    worker = add_worker(tmp_path, "early")
    with Broker(tmp_path):
        assert probe(worker) is Answer.ACCEPTED
        assert probe(worker.model_copy(update={"password": "guessed"})) is Answer.REFUSED


@pytest.mark.parametrize("name", ["planner", "operator", "a.b", "a>", "", "w\n", "x" * 65])
def test_a_name_that_is_no_workers_is_refused(tmp_path: Path, name: str) -> None:
    with Broker(tmp_path) as running:
        with pytest.raises(ConfigError, match="cannot name a worker"):
            add_worker(tmp_path, name)
        with pytest.raises(AuthRefused):
            running.accounts.credentials("stranger")


def test_secrets_are_private(tmp_path: Path) -> None:
    with Broker(tmp_path) as running:
        add_worker(tmp_path, "w")
        secrets = [running.accounts.credentials(name).password for name in ("planner", "w")]
        holders = [
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and any(secret in path.read_text(errors="replace") for secret in secrets)
        ]
        assert {path.name for path in holders} == {"accounts.json", "accounts.conf"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}
        assert stat.S_IMODE((tmp_path / "broker").stat().st_mode) == 0o700
        assert not any(secret in repr(running.accounts) + repr(running) for secret in secrets)


def test_another_server_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = tmp_path / "called"
    wrapper = script(tmp_path / "mine", f'echo "$@" >> "{called}"\nexec "{find_server()}" "$@"\n')
    monkeypatch.setenv("FEDBUS_NATS_SERVER", str(wrapper))
    with Broker(tmp_path / "stack") as running:
        assert probe(running.accounts.credentials("planner")) is Answer.ACCEPTED
        assert "server.conf" in called.read_text()
        assert alive(running.pid)
    monkeypatch.setenv("FEDBUS_NATS_SERVER", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"FEDBUS_NATS_SERVER=.*none is not an executable file"):
        Broker(tmp_path / "stack").start()


def test_a_server_that_is_too_old_or_none_at_all_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = script(tmp_path / "old", "echo nats-server: v2.11.4\n")
    monkeypatch.setenv("FEDBUS_NATS_SERVER", str(old))
    with pytest.raises(ServerTooOld, match=r"nats-server 2\.11\.4; fedbus needs 2\.12\.0 or later: .*TTL"):
        Broker(tmp_path / "stack").start()
    monkeypatch.setenv("FEDBUS_NATS_SERVER", str(script(tmp_path / "other", "echo hello\n")))
    with pytest.raises(ConfigError, match="does not answer as a nats-server"):
        Broker(tmp_path / "stack").start()


def test_a_server_that_ends_at_its_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[ "$1" = -v ] && echo nats-server: v2.12.1 && exit\necho "[FTL] out of luck" >&2\nexit 1\n'
    monkeypatch.setenv("FEDBUS_NATS_SERVER", str(script(tmp_path / "server", text)))
    with pytest.raises(BusUnavailable, match="out of luck"):
        Broker(tmp_path / "stack").start()


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("nonsense.invalid:4222", "there is no host 'nonsense.invalid'"),
        ("203.0.113.7:4222", "no address of this machine"),
    ],
)
def test_an_address_that_is_not_ours_is_explained(tmp_path: Path, listen: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Broker(tmp_path, listen=listen).start()


def test_a_port_that_another_process_has_is_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        own = Broker(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="another process does"):
            own.start()
        assert not own.running()
    own.start()  # the folder was let go
    own.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_says_where_it_is_and_ends_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "fedbus.runtime.broker", "--dir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert re.fullmatch(r"nats://127\.0\.0\.1:\d+\n", line)
        stack = json.loads((tmp_path / "stack.json").read_text())
        assert stack["url"] == line.strip()
        process.send_signal(number)
        assert process.wait(20) == 0
    assert not alive(stack["broker_pid"])


def test_in_the_foreground_it_says_so_when_the_server_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedbus.runtime.broker", "--dir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline()
        os.kill(json.loads((tmp_path / "stack.json").read_text())["broker_pid"], signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 50
    assert "error[bus-unavailable]: the broker died" in errors


async def test_the_account_tells_how_much_it_may_store(tmp_path: Path) -> None:
    async with broker(tmp_path) as stack, raw(stack.credentials("planner")) as planner:
        stack_file = read_stack(stack.folder)
        assert stack_file
        assert (await planner.api("INFO"))["limits"]["max_storage"] == stack_file.max_file
        assert planner.nc.max_payload == 2 << 20
    wait_until(lambda: not stack.broker.running(), "the broker has stopped")


def test_who_types_a_command_is_told_that_the_stack_is_stopped_and_a_service_waits(tmp_path: Path) -> None:
    with Broker(tmp_path):
        assert credentials_of("operator", tmp_path).user == "operator"
    with pytest.raises(BusUnavailable, match="is not running") as caught:
        credentials_of("operator", tmp_path)
    assert caught.value.hint == f"start it with: fedbus up --dir {tmp_path}"
    assert credentials_of("planner", tmp_path).user == "planner"

"""A tied child ends with its parent, however that ends, and otherwise behaves as if it were not tied."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fedbus.runtime.tied import Lifeline
from support.natsd import wait_until
from support.processes import alive

SAY_PID = "import os, sys; print(os.getpid(), flush=True); "
WAIT = "import signal; signal.pause()"
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
PARENT = """
import subprocess, sys
from fedbus.runtime.tied import Lifeline
line = Lifeline()
subprocess.Popen(line.wrap(sys.argv[1:]), pass_fds=line.pass_fds, start_new_session=True)
line.handed_over()
sys.stdin.read()
"""
IMPATIENT = """
import sys
from fedbus.runtime import watchdog
watchdog.GRACE_S = 0.1
sys.exit(watchdog.main(sys.argv[1:]))
"""


@contextmanager
def tied(*code: str, watchdog: list[str] | None = None) -> Iterator[tuple[Lifeline, subprocess.Popen[str]]]:
    with Lifeline() as line:
        command = line.wrap([sys.executable, "-c", "".join(code)])
        if watchdog:
            command = [*watchdog, *command[4:]]  # in place of python -I -S watchdog.py
        process = subprocess.Popen(
            command, pass_fds=line.pass_fds, start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        with process:
            line.handed_over()
            try:
                yield line, process
            finally:
                line.close()


def printed_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def test_the_exit_code_comes_through() -> None:
    with tied("raise SystemExit(7)") as (_, process):
        assert process.wait(20) == 7
    with tied("import os; os.abort()") as (_, process):
        assert process.wait(20) == 128 + signal.SIGABRT


def test_a_command_that_does_not_exist_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with Lifeline() as line:
        process = subprocess.Popen(line.wrap(["/no/such/program"]), pass_fds=line.pass_fds)
        assert process.wait(20) == 127
    assert "cannot run /no/such/program: No such file" in capfd.readouterr().err


def test_the_childs_own_process_id_is_told() -> None:
    with tied(SAY_PID, WAIT) as (line, process):
        assert line.pid() == printed_pid(process) != process.pid
        assert line.pid() == line.pid()
    with Lifeline() as line:
        process = subprocess.Popen(line.wrap(["true"]), pass_fds=line.pass_fds)
        line.handed_over()
        process.wait(20)
        assert line.pid() is not None, "it had one"
    with Lifeline() as line:
        line.handed_over()
        assert line.pid() is None, "nothing was started"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_come_through(number: signal.Signals) -> None:
    take = f"import signal; signal.signal({number:d}, lambda *_: sys.exit(42)); "
    with tied("import sys; ", take, SAY_PID, WAIT) as (_, process):
        child = printed_pid(process)
        process.send_signal(number)
        assert process.wait(20) == 42
        assert not alive(child)


def test_letting_go_ends_the_child_and_what_it_started() -> None:
    nested = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SAY_PID + WAIT!r}]); "
    with tied(nested, WAIT) as (line, process):
        grandchild = printed_pid(process)
        line.close()
        assert process.wait(20) == 128 + signal.SIGTERM
        wait_until(lambda: not alive(grandchild), "the grandchild is gone")


def test_a_child_that_ignores_the_request_is_killed() -> None:
    with tied(IGNORE, SAY_PID, WAIT, watchdog=[sys.executable, "-c", IMPATIENT]) as (line, process):
        child = printed_pid(process)
        line.close()
        assert process.wait(20) == 128 + signal.SIGKILL
        assert not alive(child)


def test_a_killed_parent_takes_the_child_along() -> None:
    command = [sys.executable, "-c", PARENT, sys.executable, "-c", SAY_PID + WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        child = printed_pid(parent)
        assert alive(child)
        parent.kill()
    wait_until(lambda: not alive(child), "the child of a killed parent is gone")


if sys.platform.startswith("linux"):  # elsewhere nothing ends a process whose watchdog was killed

    def test_a_killed_watchdog_takes_the_child_along() -> None:
        with tied(SAY_PID, WAIT) as (_, process):
            child = printed_pid(process)
            os.kill(process.pid, signal.SIGKILL)
            wait_until(lambda: not alive(child), "the child of a killed watchdog is gone")

"""The Python API: a federation for a script or a notebook, and a connection to one that runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fedbus
import numpy as np
import pytest
from fedbus.api.local import LocalFederation
from fedbus.base.errors import ConfigError, PlanRefused, UnknownRun
from support.natsd import wait_until
from support.processes import working_in

PLAN = {
    "task": "noop",
    "rounds": 3,
    "cohort": {"min": 2},
    "train": {"value": 1.0, "elements": 6},
    "codec": {"up": "dense"},
}


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFederation]:
    with fedbus.local(workers=2) as federation:
        folder = federation.dir
        assert folder.is_dir()
        yield federation
    assert not folder.exists()
    wait_until(lambda: working_in(folder) == [], "every process is gone", 10.0)


def test_a_run_from_its_plan_to_its_model(local: LocalFederation) -> None:
    run = local.start(PLAN, name="first")
    seen = [(r.round, r.state, r.accepted, r.metrics["loss"]) for r in run]
    assert seen == [(n, "finished", 2, float(n)) for n in (1, 2, 3)]
    model = run.model()
    assert list(model) == ["w"]
    np.testing.assert_array_equal(model["w"], np.full(6, 3.0, np.float32))
    assert [r.round for r in local.run("first")] == [1, 2, 3], "once more, after its end"
    assert [each.run for each in local.runs()] == ["first"]


def test_a_plan_file_an_abort_and_refusals(local: LocalFederation, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("task: noop\ncohort: {min: 3}\n")
    run = local.start(tmp_path / "plan.yaml")
    with pytest.raises(UnknownRun, match="has made no model yet"):
        run.model()
    run.abort("enough")
    report = run.wait()
    assert (report.state, report.reason) == ("aborted", "enough")
    with pytest.raises(PlanRefused, match="did you mean 'rounds'"):
        local.start({"task": "noop", "round": 3})
    with pytest.raises(UnknownRun):
        local.run("no-such-run")


def test_connect_from_elsewhere_also_inside_a_running_loop(local: LocalFederation) -> None:
    with fedbus.connect(dir=local.dir) as connection:
        last = [r.round for r in connection.start({**PLAN, "rounds": 2})]
        assert last == [1, 2]

    async def notebook() -> list[int]:
        with fedbus.connect(dir=local.dir) as connection:  # a notebook's cell runs in a loop
            assert connection.runs()
        async with fedbus.connect_async(dir=local.dir) as federation:
            run = await federation.start(PLAN)
            rounds = [r.round async for r in federation.rounds(run)]
            assert (await federation.model(run))["w"].sum() == 18.0
            return rounds

    assert asyncio.run(notebook()) == [1, 2, 3]


def test_stopping_early_leaves_the_connection_usable(local: LocalFederation) -> None:
    run = local.start(PLAN)
    for round_ in run:
        assert round_.round == 1
        break
    assert run.wait().state == "finished"


def test_a_script_that_forgets_to_close_leaves_nothing_behind() -> None:
    program = "import fedbus; f = fedbus.local(workers=1); print(f.dir)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert not folder.exists()
    wait_until(lambda: working_in(folder) == [], "every process is gone", 10.0)


def test_without_a_stack_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no stack in"):
        fedbus.connect(dir=tmp_path)

"""A backup of a stack that runs is of one instant; restored, its runs go on with workers that knew more."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fedbus.api.federation import Federation
from fedbus.base.errors import ConfigError
from fedbus.runtime.backup import INDEX, KeptFile, back_up, put_back, read_index, restore
from fedbus.runtime.stack import LocalStack
from fedbus.runtime.stackfile import read_stack

ELEMENTS, ROUNDS = 300_000, 24  # two chunks


@asynccontextmanager
async def running(folder: Path, workers: Path) -> AsyncIterator[Federation]:
    """Broker, planner, aggregator and a worker, which keeps its files elsewhere."""
    async with LocalStack(folder) as stack:
        stack.start_services(["planner", "aggregator"])
        stack.start_worker("keeper", "--state", str(workers))
        async with await Federation.connect(stack.broker.accounts.credentials("operator")) as federation:
            await federation.wait_for("planner")
            yield federation


async def until_round(federation: Federation, run: str, number: int) -> None:
    async with asyncio.timeout(40):
        async for report in federation.watch(run):
            if any(r.round >= number and r.state == "finished" for r in report.rounds):
                return


async def test_a_run_goes_on_from_a_backup_that_was_made_while_it_ran(tmp_path: Path) -> None:
    try:
        async with running(tmp_path / "first", tmp_path / "workers") as federation:
            plan = {
                "task": "noop",
                "rounds": ROUNDS,
                "train": {"elements": ELEMENTS, "value": 1.0, "seconds": 0.05},
                "codec": {"up": "dense"},
                "cohort": {"min": 1},
                "evaluate": {"central": False},
            }
            run = await federation.start(plan, "kept")
            await until_round(federation, run, 3)
            made = await asyncio.to_thread(back_up, tmp_path / "first", tmp_path / "backup")
            assert 0 < made.stopped_s < 5
            before = len((await federation.run(run)).rounds)
            await until_round(federation, run, before + 5)  # the worker hears of rounds that are not in it
            # Also while the first one runs, whose address it takes.
            assert (await restore(tmp_path / "backup", tmp_path / "second"))[1] == [run]
        async with running(tmp_path / "second", tmp_path / "workers") as federation:
            assert 3 <= len((await federation.run(run)).rounds) < before + 5
            async with asyncio.timeout(50):
                async for report in federation.watch(run):
                    last = report
            assert (last.state, len(last.rounds)) == ("finished", ROUNDS)
            assert [r.accepted for r in last.rounds] == [1] * ROUNDS
            assert ((await federation.model(run))["w"] == ROUNDS).all()
    finally:
        for name in ("first", "second", "backup"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of a stack that has done nothing yet, and is stopped."""
    stack = LocalStack(tmp_path / "stack")
    stack.open()
    stack.stop()
    assert back_up(tmp_path / "stack", tmp_path / "backup").stopped_s == 0
    return tmp_path / "backup"


def test_what_cannot_be_backed_up_is_said(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(ConfigError, match="no stack was ever started in"):
        back_up(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(ConfigError, match="is not empty"):
        back_up(tmp_path / "stack", backup)


def test_a_damaged_backup_is_refused_and_leaves_nothing(tmp_path: Path, backup: Path) -> None:
    victim = backup / "accounts.json"
    victim.write_bytes(victim.read_bytes()[:-2] + b" }")
    with pytest.raises(ConfigError, match=r"accounts.json is not what was backed up: it is damaged"):
        put_back(backup, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".stack.lock"]


def test_a_backup_never_overwrites_a_stack(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(ConfigError, match="has a stack already"):
        put_back(backup, tmp_path / "stack")


def test_an_index_that_is_not_one_is_refused(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(ConfigError, match="is no backup"):
        read_index(tmp_path)
    said = json.loads((backup / INDEX).read_text())
    kept = said["files"]["accounts.json"]
    for files, words in (
        ({**said["files"], "../../etc/passwd": kept}, "names a file outside of the backup"),
        ({**said["files"], "/etc/passwd": kept}, "names a file outside of the backup"),
        ({"accounts.json": kept}, "lacks stack.json"),
    ):
        (backup / INDEX).write_text(json.dumps({**said, "files": files}))
        with pytest.raises(ConfigError, match=words):
            put_back(backup, tmp_path / "new")
    (backup / INDEX).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        read_index(backup)


async def test_a_restore_that_fails_leaves_nothing(tmp_path: Path, backup: Path) -> None:
    index = read_index(backup)
    junk = b'{"services": {}, "workers": {}, "invites": {}, "more": 1}'
    (backup / "accounts.json").write_bytes(junk)
    kept = KeptFile(bytes=len(junk), sha256=hashlib.sha256(junk).hexdigest())
    files = {**index.files, "accounts.json": kept}
    (backup / INDEX).write_text(index.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(ConfigError):
        await restore(backup, tmp_path / "new")
    assert not (tmp_path / "new" / "stack.json").exists()
    assert not (tmp_path / "new" / "broker" / "store").exists()


def test_a_process_that_has_the_number_of_a_broker_that_is_gone_is_let_alone(
    tmp_path: Path, backup: Path
) -> None:
    """What a kill of everything leaves in `stack.json` may be anybody's by now; here it is ours."""
    stack = read_stack(tmp_path / "stack")
    assert stack is not None
    stack.model_copy(update={"broker_pid": os.getpid()}).save(tmp_path / "stack")
    assert back_up(tmp_path / "stack", tmp_path / "another").stopped_s == 0

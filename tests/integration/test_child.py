"""Real trainer children: what they compute, what they say when they fail, and that they go."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fedbus import Site
from fedbus.base.errors import ChildDied, ConfigError, TaskFailed, TaskMissing
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Partition
from fedbus_schemas.update import TensorSpec
from support.natsd import wait_until
from support.processes import alive

MINE = '''
import os, signal, sys, time
from dataclasses import dataclass
import numpy as np
from fedbus import Evaluated, Trained, TrainingTask

class Mine(TrainingTask):
    """Does what its parameter says."""

    @dataclass(frozen=True)
    class Params:
        what: str = "train"

    def load(self, site):
        print("loading", site.labels)
        self.loads = getattr(self, "loads", 0) + 1
        return site

    def model(self, seed):
        return {"w": np.full(3, seed, np.float32), "head": np.zeros(2)}

    def groups(self):
        return {"head": "local"}

    def arrays(self, model):
        return model

    def set_arrays(self, model, arrays):
        model.update(arrays)

    def train(self, model, data, step):
        print("hello from the task")
        os.write(1, b'{"done": {}}\\n')
        assert sys.stdin.read() == ""
        model["w"] += 1
        model["head"] += 1
        secrets = sum("FEDBUS" in name for name in os.environ)
        threads = float(os.environ["OMP_NUM_THREADS"])
        metrics = {"head": model["head"][0], "loads": self.loads, "secrets": secrets, "threads": threads}
        return getattr(self, step.params.what)(model, step) or Trained(np.int64(7), metrics)

    def evaluate(self, model, data):
        return Evaluated(2, {"head": model["head"][0], "w": model["w"].sum()})

    def train_(self, model, step): pass
    def raises(self, model, step): raise KeyError("no such column")
    def nan(self, model, step): model["w"][1] = np.nan
    def grows(self, model, step): model["w"] = np.zeros(4, np.float32)
    def no_examples(self, model, step): return Trained(0)
    def bad_metric(self, model, step): return Trained(1, {"loss": float("nan")})
    def forgets(self, model, step): return 3
    def leaves(self, model, step): sys.exit(5)
    def killed(self, model, step):
        print("about to swap", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    def forever(self, model, step):
        step.progress(0.5)
        while True:
            time.sleep(0.01)
'''
TASK = "mine_for_tests:Mine"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's own task in it."""
    (tmp_path / "mine_for_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBUS_URL", "nats://user:secret@host")
    return tmp_path


async def _leaves(pid: int | None) -> None:
    assert pid is not None
    await asyncio.to_thread(wait_until, lambda: not alive(pid), "the child has ended", 10.0)


def _read(path: Path) -> np.ndarray:
    return np.fromfile(path, np.float32)


async def test_noop_computes_exactly_and_a_child_leaves_when_idle(folder: Path) -> None:
    params = {"elements": 1000, "value": 0.25, "num_examples": 3, "seconds": 1.0}
    model, out = folder / "model", folder / "out"
    async with Trainer(folder / "path", idle_exit_s=0.2) as trainer:
        assert trainer.pid is None
        table = await trainer.init("noop", params, 1, model)
        assert table == [TensorSpec(name="w", shape=(1000,), dtype="float32")]
        assert (_read(model) == np.zeros(1000)).all()
        np.full(1000, 2, np.float32).tofile(model)
        told: list[float] = []
        trained = await trainer.train("noop", params, 5, 1, Site(), table, model, out, told.append)
        assert (trained.num_examples, dict(trained.metrics)) == (3, {"added": 0.25})
        assert (_read(out) == np.full(1000, 0.25, np.float32)).all()
        assert 2 <= len(told) <= 6  # at most five a second
        assert told == sorted(told)
        assert 0 < told[0] < told[-1] <= 1
        scored = await trainer.evaluate("noop", params, Site(), table, model)
        assert (scored.num_examples, dict(scored.metrics)) == (3, {"loss": 2.0})
        drawn = {k: v for k, v in params.items() if k not in ("value", "seconds")}
        first = await trainer.train("noop", drawn, 5, 1, Site(), table, model, out)
        assert first == await trainer.train("noop", drawn, 5, 2, Site(), table, model, out)
        assert first != await trainer.train("noop", drawn, 6, 1, Site(), table, model, out)
        await _leaves(trainer.pid)
        assert trainer.pid is None


async def test_digits_learn_and_the_same_seed_repeats(folder: Path) -> None:
    model, out, better = folder / "model", folder / "out", folder / "better"
    params = {"epochs": 1}
    part = Site(partition=Partition("dirichlet", 4, 2, seed=1, alpha=0.3))
    held_out = Site(held_out=True)
    async with Trainer(folder / "path") as trainer:
        table = await trainer.init("digits", params, 3, model)
        before = await trainer.evaluate("digits", params, held_out, table, model)
        trained = await trainer.train("digits", params, 4, 1, Site(), table, model, out)
        (_read(model) + _read(out)).tofile(better)
        after = await trainer.evaluate("digits", params, held_out, table, better)
        assert sum(spec.size for spec in table) == len(_read(model)) == 38_378
        assert trained.num_examples + before.num_examples == 1797
        assert after.metrics["loss"] < 0.5 * before.metrics["loss"]
        assert after.metrics["accuracy"] > 0.8 > before.metrics["accuracy"]
        deltas = []
        for seed in (9, 9, 10):
            await trainer.train("digits", params, seed, 2, part, table, better, out)
            deltas.append(_read(out))
        assert (deltas[0] == deltas[1]).all()
        assert (deltas[0] != deltas[2]).any()


async def test_a_task_of_ones_own_keeps_its_local_tensors_and_may_print(folder: Path) -> None:
    model, out = folder / "model", folder / "out"
    ours, theirs = Site(labels={"k": "v"}), Site(partition=Partition("iid", 2, 0, seed=0))
    params = {"what": "train_"}
    async with Trainer(folder / "path", threads=2) as trainer:
        table = await trainer.init(TASK, params, 4, model)
        assert [spec.name for spec in table] == ["w"]
        seen = []
        for site in (ours, ours, theirs):
            trained = await trainer.train(TASK, params, 1, 1, site, table, model, out)
            assert trained.num_examples == 7
            assert _read(out).tolist() == [1, 1, 1]
            seen.append(dict(trained.metrics))
        assert seen[0] == {"head": 1, "loads": 1, "secrets": 0, "threads": 2}
        assert [(s["head"], s["loads"]) for s in seen] == [(1, 1), (2, 1), (1, 2)]
        scored = await trainer.evaluate(TASK, params, ours, table, model)
        assert scored.metrics == {"head": 2, "w": 12}

        pid = trainer.pid
        for what, reason in [
            ("raises", "KeyError: 'no such column'"),
            ("nan", "ValueError: tensor 'w' is not finite"),
            ("grows", r"ValueError: tensor 'w' is float32 \[4\], lossy here, but float32 \[3\]"),
            ("no_examples", "num_examples must be a whole number from 1, got 0"),
            ("bad_metric", "metric 'loss' must be finite, got nan"),
            ("forgets", "must return Trained, returned int"),
        ]:
            with pytest.raises(TaskFailed, match=reason) as failed:
                await trainer.train(TASK, {"what": what}, 1, 1, Site(), table, model, out)
            assert "Traceback" in (failed.value.hint or "")
            if what == "raises":
                assert 'mine_for_tests.py", line' in (failed.value.hint or "")
        with pytest.raises(TaskFailed, match=r"wha: unknown key; did you mean 'what'\?"):
            await trainer.init(TASK, {"wha": 1}, 1, model)
        with pytest.raises(TaskFailed, match="there is no module 'nowhere_at_all'"):
            await trainer.init("nowhere_at_all:Task", {}, 1, model)
        with pytest.raises(TaskFailed, match="tensor 'w' is missing here"):
            await trainer.evaluate("digits", {}, Site(held_out=True), table, model)
        with pytest.raises(TaskMissing, match="did you mean 'digits'"):
            await trainer.init("digit", {}, 1, model)
        assert trainer.pid == pid  # it lived through all of it

        await trainer.stop()
        assert trainer.pid is None
        await _leaves(pid)


async def test_a_child_that_dies_says_how_and_the_next_call_works(folder: Path) -> None:
    model, out = folder / "model", folder / "out"
    async with Trainer(folder / "path") as trainer:
        table = await trainer.init(TASK, {"what": "leaves"}, 4, model)
        with pytest.raises(ChildDied, match="exited with code 5"):
            await trainer.train(TASK, {"what": "leaves"}, 1, 1, Site(), table, model, out)
        with pytest.raises(ChildDied, match=r"killed by SIGKILL \(out of memory\?\): about to swap") as died:
            await trainer.train(TASK, {"what": "killed"}, 1, 1, Site(), table, model, out)
        assert "hello from the task" in (died.value.hint or "")

        started = asyncio.Event()
        forever = (TASK, {"what": "forever"}, 1, 1, Site(), table, model, out, lambda _: started.set())
        call = asyncio.create_task(trainer.train(*forever))
        await started.wait()
        pid = trainer.pid
        begun = time.monotonic()
        trainer.cancel()
        with pytest.raises(ChildDied, match="its work was cancelled"):
            await call
        assert time.monotonic() - begun < 2.0
        await _leaves(pid)

        started.clear()
        call = asyncio.create_task(trainer.train(*forever))
        await started.wait()
        pid = trainer.pid
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert trainer.pid is None
        await _leaves(pid)


AGENT = """
import asyncio, sys
from pathlib import Path
from fedbus import Site
from fedbus.runtime.child import Trainer

async def main():
    trainer, model, params = Trainer(Path("path")), Path("model"), {"seconds": 600.0}
    table = await trainer.init("noop", params, 0, model)
    tell = lambda fraction: print(trainer.pid, flush=True)
    await trainer.train("noop", params, 1, 1, Site(), table, model, Path("out"), tell)

asyncio.run(main())
"""


async def test_a_child_dies_with_its_agent_in_the_middle_of_training(folder: Path) -> None:
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, stdout=asyncio.subprocess.PIPE)
    assert agent.stdout is not None
    pid = int(await agent.stdout.readline())
    assert alive(pid)
    agent.kill()
    await _leaves(pid)
    await agent.wait()


async def test_an_interpreter_that_cannot_be_started_is_named(folder: Path) -> None:
    async with Trainer(folder / "path", python=str(folder / "no-python")) as trainer:
        with pytest.raises(ConfigError, match="no-python: No such file or directory"):
            await trainer.init("noop", {}, 0, folder / "model")
    async with Trainer(folder / "path", python="/bin/false") as trainer:
        with pytest.raises(ChildDied, match="exited with code 1"):
            await trainer.init("noop", {}, 0, folder / "model")
    offered = sorted(path.name for path in (folder / "path").iterdir())
    assert offered == ["fedbus", "fedbus_worker"]


async def test_a_new_run_has_changed_code_read_again_and_a_run_under_way_keeps_its_own(
    folder: Path,
) -> None:
    file = folder / "mine_for_tests.py"
    async with Trainer(folder / "path") as trainer:
        await trainer.begin("run-1")
        await trainer.init(TASK, {}, 1, folder / "out")
        first = trainer.pid
        await trainer.begin("run-2")
        assert trainer.pid == first, "nothing changed"
        file.write_text(file.read_text().replace("np.full(3,", "np.full(40,"))
        await trainer.begin("run-2")
        assert trainer.pid == first, "run-2 has begun"
        await trainer.begin("run-3")
        assert trainer.pid is None
        table = await trainer.init(TASK, {}, 1, folder / "out")
    assert {tuple(row.shape) for row in table} >= {(40,)}


async def test_a_task_is_looked_at_without_being_made(folder: Path) -> None:
    async with Trainer(folder / "path") as trainer:
        await trainer.check(TASK)
        with pytest.raises(ConfigError, match="did you mean 'Mine'"):
            await trainer.check(TASK.replace(":Mine", ":Mien"))
        with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
            await trainer.check("nowhere:Mine")
        with pytest.raises(ConfigError, match="does not derive"):
            await trainer.check("json:JSONDecoder")

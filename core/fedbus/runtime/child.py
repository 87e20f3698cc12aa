"""The agent's side of a trainer child: start it, ask it, lose it, let it go."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedbus_schemas.update import TensorSpec
from pydantic import TypeAdapter, ValidationError

from fedbus.base.errors import ChildDied, ConfigError, TaskFailed, TaskMissing, describe
from fedbus.runtime.childlink import ChildLink
from fedbus.tasks.load import resolve
from fedbus.tasks.task import Evaluated, Site, Trained

MODULE = "fedbus_worker.child"
START_S = 60.0
STOP_S = 5.0
_PACKAGES = ("fedbus", "fedbus_worker")
# What a child may see of the environment: nothing that holds a secret.
_PASSED = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"})
_PASSED |= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"}
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "PYTORCH_")
_TABLE = TypeAdapter(list[TensorSpec])
# Runs whose begin is remembered; more do not go on at once.
MOST_RUNS = 256

log = logging.getLogger(__name__)


class Trainer:
    """One trainer child, started when there is work and let go when there is none.

    Calls wait for one another. A call that is cancelled, like `cancel`, kills the child, since
    nothing else stops user code; the next call starts a fresh one.
    """

    def __init__(
        self,
        path_dir: Path,
        *,
        python: str = sys.executable,
        idle_exit_s: float = 300.0,
        threads: int = 1,
    ) -> None:
        """Start nothing yet.

        Args:
            path_dir: folder of ours for the child's import path.
            python: interpreter of the child, Python 3.9 or later with numpy.
            idle_exit_s: seconds without a task after which the child exits.
            threads: threads that the task's numerics may use.
        """
        self._path_dir = path_dir
        self._python = python
        self._idle_exit_s = idle_exit_s
        self._threads = threads
        self._turn = asyncio.Lock()
        self._link: ChildLink | None = None
        self._idle: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._runs: deque[str] = deque(maxlen=MOST_RUNS)

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return None if self._link is None or self._link.exited else self._link.pid

    async def init(self, task: str, params: Mapping[str, Any], seed: int, out: Path) -> list[TensorSpec]:
        """Make a new model and write it to `out` as flat float32.

        Args:
            task: an installed task's name, or `module:Class`.
            params: the plan's `train:` section.
            seed: of the weights.
            out: the file to write, anew.

        Returns:
            The model's tensor table, in wire order.

        Raises:
            TaskMissing: no such task is installed.
            TaskFailed: the task raised an error; the traceback is its hint.
            ChildDied: the child ended; says how.
            ConfigError: the interpreter cannot be started.
        """
        request = {"do": "init", "params": dict(params), "seed": seed, "out": _full(out)}
        done = await self._ask(task, request)
        try:
            return _TABLE.validate_python(done["table"])
        except ValidationError as error:
            raise TaskFailed(f"task {task}: tensor table: {describe(error)}") from error

    async def train(
        self,
        task: str,
        params: Mapping[str, Any],
        seed: int,
        round: int,
        site: Site,
        table: Sequence[TensorSpec],
        model: Path,
        out: Path,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> Trained:
        """Train from the flat model in file `model`; write trained minus given weights to `out`.

        Raises:
            TaskMissing, TaskFailed, ChildDied, ConfigError: as `init`.
        """
        request = {
            "do": "train",
            "params": dict(params),
            "seed": seed,
            "round": round,
            "site": _plain(site),
            "table": [row.model_dump(mode="json") for row in table],
            "model": _full(model),
            "out": _full(out),
        }
        done = await self._ask(task, request, on_progress)
        return Trained(done["num_examples"], done["metrics"])

    async def evaluate(
        self, task: str, params: Mapping[str, Any], site: Site, table: Sequence[TensorSpec], model: Path
    ) -> Evaluated:
        """Score the flat model in file `model` on the site's data.

        Raises:
            TaskMissing, TaskFailed, ChildDied, ConfigError: as `init`.
        """
        request = {
            "do": "evaluate",
            "params": dict(params),
            "site": _plain(site),
            "table": [row.model_dump(mode="json") for row in table],
            "model": _full(model),
        }
        done = await self._ask(task, request)
        return Evaluated(done["num_examples"], done["metrics"])

    async def check(self, task: str) -> None:
        """See that the child finds a task, written `module:Class`.

        Raises:
            ConfigError: it does not; says what is wrong with the text, the module or the class.
            TaskFailed: the module raises when it is imported; the traceback is its hint.
            ChildDied: as `init`.
        """
        done = await self._ask(task, {"do": "load"})
        if problem := done["problem"]:
            raise ConfigError(str(problem))

    async def begin(self, run: str) -> None:
        """Before a run's first work: let go of a child that has read code or data which changed since.

        Later calls for the run do nothing, so that it keeps its code from one round to the next.
        """
        if run in self._runs:
            return
        self._runs.append(run)
        if self.pid is None:
            return
        try:
            async with self._turn:
                self._rest(None)
                changed = (await self._exchange({"do": "changed"}))["done"]["changed"]
                if changed:
                    log.info("%s has changed: a new trainer process reads it", changed)
                    await self._let_go()
        except ChildDied:
            pass  # whatever comes next starts a fresh one

    def cancel(self) -> None:
        """Kill the child at once if it is at work; the call under way raises ChildDied."""
        if self._turn.locked() and self._link is not None:
            self._link.kill("the trainer process was stopped: its work was cancelled")

    async def stop(self) -> None:
        """End the child, at once if it is at work. Later calls start a fresh one."""
        self.cancel()
        async with self._turn:
            self._rest(None)
            await self._let_go()

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _ask(
        self, task: str, request: dict[str, Any], on_progress: Callable[[float], None] | None = None
    ) -> dict[str, Any]:
        try:
            request["task"] = resolve(task)
        except LookupError as error:
            raise TaskMissing(str(error)) from error
        async with self._turn:
            self._rest(None)
            reply = await self._exchange(request, on_progress)
        if failed := reply.get("failed"):
            raise TaskFailed(f"task {task}: {failed['error']}", hint=failed["traceback"])
        done: dict[str, Any] = reply["done"]
        return done

    async def _exchange(
        self, request: Mapping[str, Any], on_progress: Callable[[float], None] | None = None
    ) -> dict[str, Any]:
        """Ask the child, started if need be, and hear it out. The caller holds the turn."""
        link = await self._start()
        finished = False
        try:
            link.send(request)
            while "progress" in (reply := await link.receive()):
                if on_progress is not None:
                    on_progress(reply["progress"])
            finished = True
        finally:
            if finished:
                self._rest(self._idle_exit_s)
            else:
                await self._drop(link)
        return reply

    async def _start(self) -> ChildLink:
        """The running child, or a fresh one."""
        if self._link is not None and not self._link.exited:
            return self._link
        await self._let_go()
        self._link = link = await self._launch()
        ready = False
        try:
            async with asyncio.timeout(START_S):
                await link.receive()
            ready = True
        except TimeoutError:
            raise ChildDied(f"{self._python} did not start the trainer within {START_S:.0f} s") from None
        finally:
            if not ready:
                await self._drop(link)
        return link

    async def _launch(self) -> ChildLink:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED or name.startswith(_PASSED_PREFIXES)
        }
        environment["PYTHONPATH"] = os.fspath(offer_packages(self._path_dir))
        # `-m` also puts the current folder on the path, where a user's own module:Class may lie.
        command = [self._python, "-m", MODULE, "--threads", str(self._threads)]
        try:
            return await ChildLink.open(command, environment)
        except OSError as error:
            raise ConfigError(f"cannot start the trainer with {self._python}: {error.strerror}") from error

    async def _drop(self, link: ChildLink) -> None:
        """Kill a child whose answer nobody waits for, and do not be kept from it."""
        link.kill("the trainer process was stopped")
        self._link = None
        await asyncio.shield(link.closed())

    async def _let_go(self) -> None:
        """End the child by ending its input."""
        link, self._link = self._link, None
        if link is not None:
            link.finish()
            try:
                async with asyncio.timeout(STOP_S):
                    await link.closed()
            except TimeoutError:
                await self._drop(link)

    def _rest(self, seconds: float | None) -> None:
        """Let the child go after so many seconds of rest; None means it has work."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if seconds is not None:
            self._idle = asyncio.get_running_loop().call_later(seconds, self._retire)

    def _retire(self) -> None:
        self._idle = asyncio.create_task(self._exit())

    async def _exit(self) -> None:
        async with self._turn:
            self._idle = None
            await self._let_go()


def offer_packages(path_dir: Path) -> Path:
    """A folder with links to the two packages that a child imports, and nothing else of this environment.

    Another interpreter must not see this one's site-packages, only fedbus.
    """
    path_dir.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ConfigError(f"the package {name} is not installed here")
        target = Path(spec.origin).parent.resolve()
        link = path_dir / name
        if not (link.is_symlink() and link.readlink() == target):
            fresh = path_dir / f".{name}.{os.getpid()}"
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
            fresh.symlink_to(target, target_is_directory=True)
            fresh.replace(link)  # several agents may do this at once
    return path_dir.absolute()


def _plain(site: Site) -> dict[str, Any]:
    """A site as JSON."""
    partition = None if site.partition is None else asdict(site.partition)
    data = None if site.data is None else _full(Path(site.data))
    return {"data": data, "partition": partition, "held_out": site.held_out, "labels": dict(site.labels)}


def _full(path: Path) -> str:
    return os.fspath(path if path.is_absolute() else path.absolute())

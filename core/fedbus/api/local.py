"""`fedbus.local()`: a whole federation on this machine for a notebook or a script, gone when it ends."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedbus.api.connection import Connection
from fedbus.runtime.stack import LocalStack
from fedbus.runtime.supervisor import Supervisor

log = logging.getLogger(__name__)


class LocalFederation(Connection):
    """A connection to processes that it started itself, and stops with `close` or at exit."""

    def __init__(self, stack: LocalStack, temporary: bool) -> None:
        self._stack = stack
        self._temporary = temporary
        super().__init__(stack.broker.accounts.credentials("operator"))
        self._loop.begin(Supervisor(stack, log.warning).run())
        atexit.register(self.close)
        try:
            # Rounds of a run that starts at once would else stay without a score.
            self._loop.call(self._federation.wait_for("evaluator"))
        except BaseException:
            self.close()
            raise

    @property
    def dir(self) -> Path:
        """The stack's folder: logs in `logs`, and what `fedbus --dir` takes."""
        return self._stack.folder

    def close(self) -> None:
        """Stop every process; the temporary folder is removed."""
        atexit.unregister(self.close)
        try:
            super().close()
        finally:
            self._stack.stop()
            if self._temporary:
                shutil.rmtree(self._stack.folder, ignore_errors=True)


def local(
    workers: int = 2,
    *,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    dir: str | Path | None = None,
) -> LocalFederation:
    """Start broker, services and workers on this machine, and connect to them.

        with fedbus.local(workers=4) as f:
            run = f.start({"task": "digits", "data": {"parts": 4}, "cohort": {"min": 4}})

    Without `with`, everything ends with the interpreter, or by `close()`.

    Args:
        workers: how many; they are called w1, w2 and so on.
        tasks: tasks beside those installed, as `module:Class`, importable from the current folder.
        data: every worker's own data folder.
        dir: where to keep everything; a temporary folder, removed at the end, by default.

    Raises:
        ConfigError: there is no nats-server, or another stack runs in the folder.
        BusUnavailable: the broker does not come up.
    """
    flags = [part for task in tasks for part in ("--task", task)]
    flags += ["--data", str(Path(data).expanduser().absolute())] if data else []
    stack = LocalStack(Path(dir) if dir else Path(tempfile.mkdtemp(prefix="fedbus-")))
    try:
        stack.open()
        stack.start_services()
        for number in range(1, workers + 1):
            stack.start_worker(f"w{number}", *flags)
        stack.write_pids()
        return LocalFederation(stack, temporary=dir is None)
    except BaseException:
        stack.stop()
        if dir is None:
            shutil.rmtree(stack.folder, ignore_errors=True)
        raise

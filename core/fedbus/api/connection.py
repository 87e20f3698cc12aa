"""`fedbus.connect()`: a federation for plain, synchronous code, such as scripts and notebooks.

    with fedbus.connect() as f:
        run = f.start({"task": "digits", "rounds": 5})
        for round in run:
            print(round.round, round.metrics)
        weights = run.model()

`fedbus.connect_async()` gives the same as an asynchronous context: a `Federation`, whose methods take a
run's name.

    async with fedbus.connect_async() as f:
        run = await f.start({"task": "digits", "rounds": 5})
        async for round in f.rounds(run):
            print(round.round, round.metrics)
        weights = await f.model(run)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fedbus.api.federation import Federation
from fedbus.api.loop import LoopThread
from fedbus.api.planfile import read_plan_file
from fedbus.runtime.identity import credentials_of

if TYPE_CHECKING:
    from fedbus_schemas.report import RoundReport, RunReport, RunSummary

    from fedbus.bus import Credentials

Plan = Mapping[str, Any] | str | Path


class Run:
    """One run. Iterate over it for its rounds: each comes once it has ended and been scored."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def __iter__(self) -> Iterator[RoundReport]:
        """All rounds from the first, those that ended before included. Ends with the run."""
        connection = self._connection
        return connection._loop.iterate(connection._federation.rounds(self.name))

    def report(self) -> RunReport:
        """The run as it is now: state, reason, rounds, digest of its last model."""
        return self._connection._loop.call(self._connection._federation.run(self.name))

    def wait(self) -> RunReport:
        """Return the report once the run has ended, whether it finished or was aborted."""
        for _ in self:
            pass
        return self.report()

    def model(self) -> dict[str, np.ndarray]:
        """The last model: numpy arrays by the names that the task gives them.

        Raises:
            UnknownRun: the run has made no model yet.
        """
        return self._connection._loop.call(self._connection._federation.model(self.name))

    def abort(self, reason: str | None = None) -> None:
        """End the run; its workers stop.

        Raises:
            RunEnded: it is over already.
        """
        self._connection._loop.call(self._connection._federation.abort(self.name, reason))


class Connection:
    """An operator's connection to a federation. Use it in a `with` block, or call `close`."""

    def __init__(self, credentials: Credentials) -> None:
        self._loop = LoopThread()
        try:
            self._federation = self._loop.call(Federation.connect(credentials))
        except BaseException:
            self._loop.stop()
            raise

    def start(self, plan: Plan, name: str | None = None) -> Run:
        """Start a run.

        Args:
            plan: keys and values as in a plan file, or the path of such a file.
            name: of the run; the next free `run-NNNN` by default.

        Raises:
            PlanRefused, UnknownName: the plan cannot be followed; says why.
            BusUnavailable: no planner answers.
        """
        values = read_plan_file(Path(plan)) if isinstance(plan, str | Path) else dict(plan)
        return Run(self, self._loop.call(self._federation.start(values, name)))

    def run(self, name: str) -> Run:
        """A run that was started before.

        Raises:
            UnknownRun: there is none of that name.
        """
        self._loop.call(self._federation.run(name))
        return Run(self, name)

    def runs(self) -> list[RunSummary]:
        """All runs, oldest first."""
        return self._loop.call(self._federation.runs())

    def close(self) -> None:
        """Disconnect. Runs go on without us."""
        if self._loop.running:
            try:
                self._loop.call(self._federation.close(), timeout_s=10.0)
            finally:
                self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    url: str | None = None, dir: str | Path | None = None, ca: str | Path | None = None
) -> Connection:
    """Connect to a federation as its operator.

    Args:
        url: `nats://operator:password@host:port`, or `tls://`, which demands TLS; FEDBUS_URL by default.
        dir: folder of a stack on this machine; FEDBUS_DIR, else `./.fedbus` by default.
        ca: authority that signed the broker's certificate, a file or PEM text; FEDBUS_CA by default, else
            those that this system trusts. Demands TLS.

    Raises:
        ConfigError: there is neither a URL nor a stack, or the CA cannot be read.
        AuthRefused, TlsRefused, BusUnavailable: the broker does not let us in, does not prove who it is, or
            is not there.
    """
    return Connection(_operator(url, dir, ca))


@asynccontextmanager
async def connect_async(
    url: str | None = None, dir: str | Path | None = None, ca: str | Path | None = None
) -> AsyncIterator[Federation]:
    """`connect` for asynchronous code: an asynchronous context that gives a `Federation`."""
    async with await Federation.connect(_operator(url, dir, ca)) as federation:
        yield federation


def _operator(url: str | None, dir: str | Path | None, ca: str | Path | None) -> Credentials:
    return credentials_of("operator", Path(dir) if dir else None, url, str(ca) if ca else None)

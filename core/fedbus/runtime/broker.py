"""The embedded broker: a nats-server in a folder, which keeps its data, its secrets and its address."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import click

from fedbus.base.errors import BusUnavailable, ConfigError, FedbusError
from fedbus.base.settings import check_environment, variable
from fedbus.bus.credentials import Credentials, bracketed, write_private
from fedbus.bus.store import NO_WRITES
from fedbus.runtime.accounts import Accounts
from fedbus.runtime.claim import Claim, is_claimed
from fedbus.runtime.disk import LEAST, MOST, storage_limit
from fedbus.runtime.launch import Server, launch
from fedbus.runtime.listening import LOOPBACK, obstacle, parse_listen
from fedbus.runtime.probe import Answer, probe
from fedbus.runtime.server import check_version, find_server
from fedbus.runtime.serverconf import ACCOUNTS_FILE, render_server
from fedbus.runtime.stackfile import StackFile, make_folder, read_stack

WORTH_A_RELOAD = LEAST
_POLL_S = 0.005
_RELOAD_S = 10.0


class Broker:
    """The broker of the stack in one folder. It ends with this process, even on SIGKILL.

    Args:
        folder: the stack's folder; made if missing.
        listen: `host:port` or `host`. Port 0 takes a free one at the first start and keeps it from then on.

    All methods are synchronous and take milliseconds; call them from a thread where an event loop runs.
    """

    def __init__(self, folder: Path, *, listen: str = f"{LOOPBACK}:0") -> None:
        self.folder = folder.expanduser().absolute()
        self._home = self.folder / "broker"
        self._host, self._port = parse_listen(listen)
        self._claim: Claim | None = None
        self._server: Server | None = None
        self._stack: StackFile | None = None
        self._max_file = 0  # most that it may store; each start and each look at the disk can raise it
        self._refusing = False

    @property
    def url(self) -> str:
        """Where it listens: `nats://host:port`. The same after each start.

        Raises:
            ConfigError: it never started.
        """
        return self._started().url

    @property
    def pid(self) -> int:
        """Process id of the nats-server itself.

        Raises:
            ConfigError: it does not run.
        """
        if (pid := self._started().broker_pid) is None:
            raise ConfigError(f"the broker in {self.folder} does not run")
        return pid

    @property
    def accounts(self) -> Accounts:
        """Who may connect."""
        return Accounts(self.folder)

    @property
    def exposed(self) -> bool:
        """Whether other hosts can reach it."""
        try:
            return not ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return self._host != "localhost"

    def running(self) -> bool:
        """Whether the server process lives."""
        return self._server is not None and self._server.process.poll() is None

    def exit_code(self) -> int | None:
        """How the server ended; None while it runs, or where it was never started."""
        return self._server.process.poll() if self._server else None

    def kill(self) -> None:
        """SIGKILL the server, if it runs."""
        if self._server is not None and self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._server.pid, signal.SIGKILL)

    def note_processes(self, processes: dict[str, int]) -> None:
        """Let `stack.json` name other processes of the stack, by name, with their process ids."""
        self._stack = self._started().model_copy(update={"processes": processes})
        self._stack.save(self.folder)

    def start(self, timeout_s: float = 120.0) -> str:
        """Start the server, or start it again after it died; returns its URL once it accepts connections.

        Args:
            timeout_s: how long it may take to read its streams back, about 0.5 s for each stored GB.

        Raises:
            ConfigError: no server binary, another broker in this folder, the disk is too full, or nobody can
                listen at its address.
            ServerTooOld: the binary is too old.
            BusUnavailable: the server ended or did not come up; the message quotes its log.
        """
        if self.running():
            return self.url
        self._let_go()
        binary = find_server()
        check_version(binary)
        make_folder(self.folder)
        make_folder(self._home)
        self._claim = self._claim or Claim(self._home / "lock", f"another broker runs in {self.folder}")
        try:
            accounts = Accounts.load_or_create(self.folder)
            # Nobody adds a worker between the rendering of the accounts and the server's first answer.
            with accounts.locked():
                self._launch(binary, accounts, self._claim, timeout_s)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Stop the server: SIGTERM, and SIGKILL after 5 s. Does nothing when it does not run."""
        self._let_go()
        if self._stack is not None and self._claim is not None:
            # Without the claim it was stopped before, and its folder may be gone.
            self._stack = self._stack.model_copy(update={"broker_pid": None, "processes": {}})
            self._stack.save(self.folder)
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def reload(self) -> None:
        """Make the running server read its accounts again. Clients that keep their rights stay connected."""
        with self.accounts.locked():
            _reload(self.accounts, self._started())

    def refuse_writes(self, refuse: bool) -> None:
        """Have the running server refuse all that it would store, or take what the disk has room for by now.

        Reads go on. A disk that is really full would leave streams that answer nothing, until the server is
        started again. One that is started while it shall refuse does so from the start.

        Raises:
            ConfigError: it never started.
            OSError: the disk has no space for the new accounts either.
        """
        with self.accounts.locked():
            self._refusing = refuse
            with contextlib.suppress(ConfigError):  # no more room than there was
                room = storage_limit(self._home / "store")
                if not refuse and room >= self._max_file + WORTH_A_RELOAD:
                    self._max_file = room
            if self._limit == self._started().max_file:
                return
            # Whoever renders the accounts meanwhile, such as enroll, reads the limit in `stack.json`.
            stack = self._started().model_copy(update={"max_file": self._limit})
            stack.save(self.folder)
            _reload(self.accounts, stack)
            self._stack = stack

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _limit(self) -> int:
        return NO_WRITES if self._refusing else self._max_file

    def _started(self) -> StackFile:
        if self._stack is None:
            raise ConfigError(f"the broker in {self.folder} was not started")
        return self._stack

    def _launch(self, binary: Path, accounts: Accounts, claim: Claim, timeout_s: float) -> None:
        store, config = self._home / "store", self._home / "server.conf"
        make_folder(store)
        before = read_stack(self.folder)
        port = self._port or (urlsplit(before.url).port if before else None) or -1
        # On a disk that others have filled meanwhile it may store what one that lives on may.
        self._max_file = max(self._max_file, storage_limit(store))
        write_private(self._home / ACCOUNTS_FILE, accounts.render(self._limit))
        write_private(config, render_server(self._home, self._host, port, MOST))
        # The claim goes down to the server: the folder stays taken for as long as the server lives.
        try:
            self._server = launch(binary, self._home, config, claim.descriptor, timeout_s)
        except BusUnavailable as error:
            if (why := obstacle(self._host, max(0, port))) is not None:
                raise why from error
            raise
        host = LOOPBACK if self._host in ("0.0.0.0", "::") else self._host  # what a client here dials
        url = f"nats://{bracketed(host)}:{self._server.port}"
        processes = self._stack.processes if self._stack else {}
        self._stack = StackFile(
            url=url, broker_pid=self._server.pid, max_file=self._limit, processes=processes
        )
        self._stack.save(self.folder)

    def _let_go(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None


def add_worker(folder: Path, name: str, secret: str | None = None) -> Credentials:
    """Give a worker a credential, from any process of this machine; a known worker gets the one it has.

    A broker that runs in the folder accepts the credential when this returns.

    Args:
        folder: the stack's.
        name: the worker's.
        secret: what the worker chose; random by default.

    Raises:
        ConfigError: the name is not a worker's, or no broker was ever started in the folder.
        NameTaken: a worker of this name has another secret than the one given.
        BusUnavailable: the broker runs and still refuses the credential.
    """
    return _admit(folder, name, lambda accounts: accounts.add_worker(name, secret))


def add_invite(folder: Path, user: str, secret: str) -> Credentials:
    """Let the holder of an invitation connect; otherwise as `add_worker`."""
    return _admit(folder, user, lambda accounts: accounts.add_invite(user, secret))


def remove_invites(folder: Path, users: Collection[str]) -> None:
    """Let holders of these invitations no longer connect; the broker cuts those who are connected.

    Raises:
        ConfigError: no broker was ever started in the folder.
    """
    folder = folder.expanduser().absolute()
    accounts = Accounts.load_or_create(folder)
    with accounts.locked():
        if accounts.remove_invites(users):
            stack = read_stack(folder)
            if stack is None:
                raise ConfigError(f"no broker was started in {folder} yet")
            _reload(accounts, stack)


def _admit(folder: Path, name: str, add: Callable[[Accounts], bool]) -> Credentials:
    folder = folder.expanduser().absolute()
    stack = read_stack(folder)
    if stack is None:
        raise ConfigError(f"no broker was started in {folder} yet")
    accounts = Accounts.load_or_create(folder)
    with accounts.locked():
        new = add(accounts)
        stack = read_stack(folder) or stack
        credentials = accounts.credentials(name)
        if stack.broker_pid is None or not is_claimed(folder / "broker" / "lock"):
            return credentials
        answer = Answer.REFUSED if new else probe(credentials)
        if answer is Answer.REFUSED:
            _reload(accounts, stack)
        deadline = time.monotonic() + _RELOAD_S
        while answer is Answer.REFUSED and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            answer = probe(credentials)
    if answer is Answer.REFUSED:
        raise BusUnavailable(f"the broker still refuses {name!r} after {_RELOAD_S:.0f} s")
    return credentials


def _reload(accounts: Accounts, stack: StackFile) -> None:
    write_private(accounts.folder / "broker" / ACCOUNTS_FILE, accounts.render(stack.max_file))
    if stack.broker_pid is not None:
        try:
            os.kill(stack.broker_pid, signal.SIGHUP)
        except ProcessLookupError:
            return  # it died; it reads the accounts when it starts again


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Folder of the stack.  [default: ./.fedbus]"
)
@click.option(
    "--listen", default=f"{LOOPBACK}:0", show_default=True, help="HOST:PORT; port 0 takes a free one."
)
def main(folder: Path | None, listen: str) -> None:
    """Run the broker until Ctrl-C or SIGTERM; prints its URL once it accepts connections."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        check_environment(os.environ)
        with Broker(folder or Path(variable("FEDBUS_DIR") or ".fedbus"), listen=listen) as broker:
            click.echo(broker.url)
            while broker.running() and not ended.wait(0.2):
                pass
            if not ended.is_set():
                raise BusUnavailable("the broker died", hint=f"its log is {broker.folder / 'broker' / 'log'}")
    except FedbusError as error:
        click.echo(f"error[{error.code}]: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()

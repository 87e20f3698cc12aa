"""How a worker gets in: its name, its locked folder and its credential."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from urllib.parse import urlsplit

from fedbus.base.errors import ConfigError, NameTaken
from fedbus.bus import Credentials
from fedbus.bus.joinstring import JoinString, is_meant, spoken
from fedbus.runtime.broker import add_worker
from fedbus.runtime.identity import refuse_ca, stack_folder
from fedbus.runtime.stackfile import read_stack

from fedbus_worker.enrolling import enrol, enrolled, is_enrolled, recall, saved_by
from fedbus_worker.state import WorkerState, claim, federation_folder

log = logging.getLogger(__name__)

_HOW = "fedbus-worker join 'fedbus://HOST:PORT/#...', as `fedbus invite create` prints it"


async def enter(
    root: Path, url: str | None, name: str | None, folder: Path | None, ca: str | None = None
) -> tuple[WorkerState, Credentials]:
    """The worker's locked folder and its credential.

    Args:
        root: the state root.
        url: a join string, or `nats://` or `tls://` with or without name and password; None: the local
            stack, or else what an earlier join saved.
        name: the worker's name; None: that of an earlier join, of the URL, or a free one.
        folder: the local stack's.
        ca: authority that signed the broker's certificate; None: that of an earlier join.

    Raises:
        ConfigError: there is nothing to join, or the name is in use on this host.
        EnrolmentError: the invitation does not let it in.
        BusUnavailable: nobody answers.
    """
    if url and is_meant(url):
        return await _by_invitation(root, JoinString.parse(url).trusting(ca), name)
    return await asyncio.to_thread(_by_credential, root, url, name, folder, ca)


async def _by_invitation(root: Path, string: JoinString, name: str | None) -> tuple[WorkerState, Credentials]:
    federation = urlsplit(string.url).netloc
    taken: set[str] = set()
    while True:
        state = await asyncio.to_thread(_seat, root, federation, string.invite, name, taken)
        try:
            return state, await enrol(state.folder, string)
        except NameTaken:
            state.release()
            if name is not None:
                raise
            taken.add(state.folder.name)  # by a worker elsewhere whose host is called like ours
        except BaseException:
            state.release()
            raise


def _seat(root: Path, federation: str, invite: str, name: str | None, taken: set[str]) -> WorkerState:
    """Lock the folder of a worker that came by this invitation before, else that of a new one."""
    if name is not None:
        return claim(root, federation, name)
    others = set()
    # One that was let in before one that only asked.
    known = sorted(federation_folder(root, federation).glob("*/"), key=lambda f: (not is_enrolled(f), f.name))
    for each in known:
        came_by = saved_by(each)
        if came_by == invite and each.name not in taken:
            try:
                return WorkerState(each)
            except ConfigError:
                continue  # it runs
        if came_by is not None:
            others.add(each.name)
    return claim(root, federation, None, passing=taken | others)


def _by_credential(
    root: Path, url: str | None, name: str | None, folder: Path | None, ca: str | None
) -> tuple[WorkerState, Credentials]:
    if url and urlsplit(url).username:
        credentials = Credentials.from_url(url, ca)
        if name not in (None, credentials.name):
            raise ConfigError(f"--name {name} is not the URL's user {credentials.name}")
        return claim(root, urlsplit(credentials.url).netloc, credentials.name), credentials
    home = stack_folder(folder)
    stack = None if url else read_stack(home)
    if stack is not None:
        refuse_ca(ca, home)
        state = claim(root, urlsplit(stack.url).netloc, name)
        return state, add_worker(home, state.folder.name)
    where = federation_folder(root, urlsplit(url).netloc) if url else None
    known = [path for path in enrolled(root) if name in (None, path.name) and where in (None, path.parent)]
    if len(known) == 1:
        state = WorkerState(known[0])
        try:
            return state, recall(state.folder, ca, tls=bool(url and urlsplit(url).scheme == "tls"))
        except BaseException:
            state.release()
            raise
    if known:
        names = ", ".join(f"{path.name} at {found.url}" for path, found in enrolled(root).items())
        raise ConfigError(
            f"several workers of this host were let in before: {names}",
            hint="say which: fedbus-worker join nats://HOST:PORT --name NAME",
        )
    called = f" called {name}" if name else ""
    if url:
        raise ConfigError(
            f"no worker{called} of this host was let in at {spoken(urlsplit(url))} before", hint=_HOW
        )
    raise ConfigError(
        f"nothing to join: there is no stack in {home}, no URL was given, "
        f"and no worker{called} of this host was let in before",
        hint=_HOW,
    )

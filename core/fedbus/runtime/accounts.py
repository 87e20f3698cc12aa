"""The identities of a stack and their secrets, kept in `accounts.json` beside it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from fedbus_schemas.base import TOKEN_PATTERN
from fedbus_schemas.roster import INVITE_USER
from pydantic import BaseModel, ConfigDict, ValidationError

from fedbus.base.errors import AuthRefused, ConfigError, NameTaken, describe
from fedbus.bus.credentials import Credentials, write_private
from fedbus.runtime.rights import IDENTITIES
from fedbus.runtime.serverconf import render_accounts
from fedbus.runtime.stackfile import exclusive, make_folder, read_stack

ACCOUNTS_FILE = "accounts.json"


class _Secrets(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    services: dict[str, str]
    workers: dict[str, str]
    invites: dict[str, str] = {}


class Accounts:
    """Services, operator, workers and holders of invitations of the stack in one folder, each with a secret.

    Reads the file anew at each call, so it sees what other processes added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Accounts({str(self.folder)!r})"

    @classmethod
    def load_or_create(cls, folder: Path) -> Accounts:
        """Open the accounts of a stack; a service that has no secret yet gets one.

        Raises:
            ConfigError: the file is damaged.
        """
        make_folder(folder)
        accounts = cls(folder)
        with accounts.locked():
            known = accounts._read() if accounts._path.exists() else _Secrets(services={}, workers={})
            if missing := [name for name in IDENTITIES if name not in known.services]:
                new = {name: _secret() for name in missing}
                accounts._write(known.model_copy(update={"services": {**known.services, **new}}))
        return accounts

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from changing the accounts over a block. Not re-entrant."""
        return exclusive(self.folder / ".accounts.lock")

    def add_worker(self, name: str, secret: str | None = None) -> bool:
        """Give a worker a secret; one that has a secret keeps it. Call it under `locked`.

        Args:
            name: the worker's.
            secret: what the worker chose; random by default.

        Returns:
            Whether the worker is new.

        Raises:
            ConfigError: the name is not a worker's.
            NameTaken: a worker of this name has another secret than the one given.
        """
        if self.has_worker(name, secret):
            return False
        known = self._read()
        self._write(known.model_copy(update={"workers": {**known.workers, name: secret or _secret()}}))
        return True

    def has_worker(self, name: str, secret: str | None = None) -> bool:
        """Whether a worker is known.

        Raises:
            ConfigError: the name is not a worker's.
            NameTaken: it has another secret than the one given.
        """
        if not re.fullmatch(TOKEN_PATTERN, name):
            raise ConfigError(f"{name!r} cannot name a worker: use up to 64 letters, digits, '-' and '_'")
        if name in IDENTITIES:
            raise ConfigError(f"{name!r} cannot name a worker: a service or the operator is called so")
        if name.startswith(INVITE_USER):
            raise ConfigError(f"{name!r} cannot name a worker: holders of invitations are called so")
        known = self._read().workers.get(name)
        if None not in (known, secret) and known != secret:
            raise NameTaken(f"another worker is called {name!r}", hint="choose another --name")
        return known is not None

    def add_invite(self, user: str, secret: str) -> bool:
        """Let the holder of an invitation connect. Call it under `locked`.

        Returns:
            Whether it is new.
        """
        known = self._read()
        if user in known.invites:
            return False
        self._write(known.model_copy(update={"invites": {**known.invites, user: secret}}))
        return True

    def remove_invites(self, users: Collection[str]) -> bool:
        """Let holders of these invitations no longer connect. Call it under `locked`.

        Returns:
            Whether one of them could until now.
        """
        known = self._read()
        kept = {user: secret for user, secret in known.invites.items() if user not in users}
        if len(kept) == len(known.invites):
            return False
        self._write(known.model_copy(update={"invites": kept}))
        return True

    def invites(self) -> list[str]:
        """Users of all invitations, sorted."""
        return sorted(self._read().invites)

    def workers(self) -> list[str]:
        """Names of all workers, sorted."""
        return sorted(self._read().workers)

    def credentials(self, name: str) -> Credentials:
        """How the party called `name` connects.

        Raises:
            AuthRefused: nobody is called so.
            ConfigError: the stack never ran, so it has no address.
        """
        known = self._read()
        password = known.services.get(name) or known.workers.get(name) or known.invites.get(name)
        if password is None:
            raise AuthRefused(f"{self.folder} knows no service, worker or invitation called {name!r}")
        stack = read_stack(self.folder)
        if stack is None:
            raise ConfigError(f"no broker was started in {self.folder} yet")
        return Credentials(url=stack.url, user=name, password=password)

    def render(self, max_file: int) -> str:
        """The broker's configuration of accounts, rights and users; `max_file` in bytes."""
        known = self._read()
        return render_accounts(known.services, known.workers, max_file, known.invites)

    @property
    def _path(self) -> Path:
        return self.folder / ACCOUNTS_FILE

    def _read(self) -> _Secrets:
        try:
            return _Secrets.model_validate_json(self._path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigError(f"{self._path} is damaged: {describe(error)}") from None

    def _write(self, known: _Secrets) -> None:
        write_private(self._path, known.model_dump_json(indent=2) + "\n")


def _secret() -> str:
    return secrets.token_urlsafe(24)

"""Which credential a process connects with: the URL that it was given, or the local stack's."""

from __future__ import annotations

from pathlib import Path

from fedbus.base.errors import ConfigError
from fedbus.base.settings import variable
from fedbus.bus.credentials import Credentials
from fedbus.runtime.accounts import Accounts
from fedbus.runtime.stackfile import read_stack

DEFAULT_DIR = Path(".fedbus")


def stack_folder(given: Path | None = None) -> Path:
    """The local stack's folder: as given, else FEDBUS_DIR, else ./.fedbus."""
    return (given or Path(variable("FEDBUS_DIR") or DEFAULT_DIR)).expanduser().absolute()


def credentials_of(identity: str, folder: Path | None = None, url: str | None = None) -> Credentials:
    """The credential of a service or of the operator.

    Args:
        identity: `planner`, `operator` and so on; a URL's own user goes before it.
        folder: the local stack's folder.
        url: broker URL with user and password.

    Raises:
        ConfigError: there is neither a URL nor a local stack.
    """
    url = url or variable("FEDBUS_URL")
    if url:
        return Credentials.from_url(url)
    where = stack_folder(folder)
    if read_stack(where) is None:
        raise ConfigError(
            f"no broker: there is no stack in {where}, and no --url was given",
            hint="start one with: fedbus up",
        )
    return Accounts(where).credentials(identity)

"""Which credential a process connects with: the URL that it was given, or the local stack's."""

from __future__ import annotations

from pathlib import Path

from fedbus.base.errors import BusUnavailable, ConfigError
from fedbus.base.settings import variable
from fedbus.bus.credentials import Credentials
from fedbus.runtime.accounts import Accounts
from fedbus.runtime.stackfile import is_running, read_stack

DEFAULT_DIR = Path(".fedbus")
OPERATOR = "operator"


def stack_folder(given: Path | None = None) -> Path:
    """The local stack's folder: as given, else FEDBUS_DIR, else ./.fedbus."""
    return (given or Path(variable("FEDBUS_DIR") or DEFAULT_DIR)).expanduser().absolute()


def refuse_ca(ca: str | None, folder: Path) -> None:
    """Make sure that nobody takes the local stack's connections for encrypted; FEDBUS_CA is not meant for it.

    Raises:
        ConfigError: a CA was given for it.
    """
    if ca and ca != variable("FEDBUS_CA"):
        raise ConfigError(f"--ca is for a broker that a URL names; that of {folder} does not speak TLS")


def credentials_of(
    identity: str, folder: Path | None = None, url: str | None = None, ca: str | None = None
) -> Credentials:
    """The credential of a service or of the operator.

    Args:
        identity: `planner`, `operator` and so on; a URL's own user goes before it.
        folder: the local stack's folder.
        url: broker URL with user and password.
        ca: the authority to trust there, a file or PEM text; FEDBUS_CA by default.

    Raises:
        ConfigError: there is neither a URL nor a local stack, or a CA and no URL.
        BusUnavailable: the local stack does not run, and it is the operator who asks.
    """
    url = url or variable("FEDBUS_URL")
    if url:
        return Credentials.from_url(url, ca or variable("FEDBUS_CA"))
    where = stack_folder(folder)
    refuse_ca(ca, where)
    if read_stack(where) is None:
        raise ConfigError(
            f"no broker: there is no stack in {where}, and no --url was given",
            hint="start one with: fedbus up",
        )
    if identity == OPERATOR and not is_running(where):
        # A service waits for its broker; whoever types a command has forgotten to start it.
        shown = "" if where == DEFAULT_DIR.absolute() else f" --dir {where}"
        raise BusUnavailable(f"the stack in {where} is not running", hint=f"start it with: fedbus up{shown}")
    return Accounts(where).credentials(identity)

"""A broker that demands TLS, with the certificates in `tls/` beside this file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fedbus.bus.credentials import Credentials
from fedbus.runtime.broker import Broker
from fedbus.runtime.launch import Server, launch
from fedbus.runtime.server import find_server
from support.buses import parties
from support.natsd import Stack

CERTIFICATES = Path(__file__).parent / "tls"
CA, OTHER_CA = (str(CERTIFICATES / name) for name in ("ca.pem", "other-ca.pem"))

CA_TEXT = (CERTIFICATES / "ca.pem").read_text()


def tls_block(certificate: str = "server", inside: str = "") -> str:
    """What a server's configuration says of TLS."""
    files = f'cert_file: "{CERTIFICATES / certificate}.pem"\nkey_file: "{CERTIFICATES / "server.key"}"'
    return f"tls {{\n{files}\n{inside}\n}}\n"


class Secured:
    """A nats-server with a `tls` block over the folder of a stack that was made, and stopped, before.

    Args:
        folder: the stack's.
        url: where it listened.
        credentials: of those who may connect, by name.
        inside: a line more in the `tls` block.
        beside: a line more beside it.
    """

    def __init__(
        self, folder: Path, url: str, credentials: dict[str, Credentials], inside: str = "", beside: str = ""
    ) -> None:
        self.address = url.partition("://")[2]
        self._home = folder / "broker"
        self._config = self._home / "tls.conf"
        self._known = credentials
        self._lines = inside, beside
        self._server: Server | None = None
        self._held = os.open(self._home / "tls.lock", os.O_RDWR | os.O_CREAT)

    @property
    def url(self) -> str:
        return f"tls://{self.address}"

    def credentials(self, name: str) -> Credentials:
        """Of a party that trusts the authority of these certificates."""
        return self._known[name].model_copy(update={"url": self.url, "ca": CA})

    def start(self, certificate: str = "server") -> None:
        """Start, or start again, with one of the certificates."""
        inside, beside = self._lines
        plain = re.sub(
            r"(?m)^listen: .*$", f'listen: "{self.address}"', (self._home / "server.conf").read_text()
        )
        self._config.write_text(f"{plain}{beside}\n{tls_block(certificate, inside)}")
        self._server = launch(find_server(), self._home, self._config, self._held, 60.0)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def close(self) -> None:
        """End it for good."""
        self.stop()
        os.close(self._held)


@asynccontextmanager
async def secured(
    folder: Path, *names: str, certificate: str = "server", inside: str = "", beside: str = ""
) -> AsyncIterator[Secured]:
    """A broker for one test, with its streams and these parties."""
    with Broker(folder / "stack") as plain:
        stack = Stack(plain)
        async with parties(stack):
            known = {name: await asyncio.to_thread(stack.credentials, name) for name in names}
        url = stack.url
    own = Secured(folder / "stack", url, known, inside, beside)
    await asyncio.to_thread(own.start, certificate)
    try:
        yield own
    finally:
        await asyncio.to_thread(own.close)

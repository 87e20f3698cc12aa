"""TLS without I/O: whether a connection must have it, and what lies between its bytes and the broker's.

The broker greets in clear text, and says there whether it speaks TLS; then the client begins. Both
clients use this in place of asyncio's `start_tls`; docs/adr/0013 says why.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbus.base.errors import BusError, BusUnavailable, ConfigError, TlsRefused
from fedbus.bus.credentials import Credentials, is_pem

_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*


def is_wanted(credentials: Credentials, info: Mapping[str, Any]) -> bool:
    """Whether the connection goes on in TLS.

    Args:
        credentials: ours.
        info: the broker's greeting.

    Raises:
        TlsRefused: we demand TLS and the broker has none, or it demands a certificate of us.
    """
    if not credentials.demands_tls and not info.get("tls_required"):
        return False
    if not info.get("tls_required") and not info.get("tls_available"):
        raise TlsRefused(
            f"{credentials.url} does not speak TLS, which is demanded of it; no password was sent",
            hint="switch TLS on at the broker; only in a network that you trust, use nats:// and no CA",
        )
    if info.get("tls_verify"):
        raise TlsRefused(
            f"{credentials.url} demands a certificate of its clients, and fedbus has none",
            hint="take `verify` out of the broker's `tls` block: parties log in by password",
        )
    return True


def trust(ca: str | None) -> ssl.SSLContext:
    """Whom to believe: that authority alone, or those that this system knows.

    Args:
        ca: certificates as PEM text, or the path of a file of them.

    Raises:
        ConfigError: they cannot be read.
    """
    if ca is None:
        return ssl.create_default_context()
    named = "the CA that was given" if is_pem(ca) else ca
    # Not `create_default_context(cadata=...)`, which trusts everyone the system does where a file is empty.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca if is_pem(ca) else Path(ca).read_text("ascii"))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = error.strerror if not isinstance(error, ssl.SSLError) and isinstance(error, OSError) else None
        raise ConfigError(
            f"cannot read certificates from {named}: {why or 'it holds none in PEM form'}",
            hint="give the certificate of the broker's authority, a file that begins with "
            "-----BEGIN CERTIFICATE-----",
        ) from error
    return context


class Tls:
    """One connection's cipher. Certificate and host name are always checked.

    Args:
        credentials: whom to reach, and whom to trust.

    Raises:
        ConfigError: the CA cannot be read.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._received, self._unsent = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = trust(credentials.ca)
        context.options |= ssl.OP_NO_RENEGOTIATION  # so that a write never waits for a read
        try:
            self._ssl = context.wrap_bio(self._received, self._unsent, server_hostname=credentials.host)
        except ValueError as error:
            raise ConfigError(f"{credentials.url}: no certificate can be for this host: {error}") from error

    def received(self, data: bytes | memoryview) -> None:
        """Bytes came from the broker."""
        self._received.write(data)

    def shake(self) -> bool:
        """Go on with the handshake; True once it is complete. `unsent` has something to send, then and now.

        Raises:
            TlsRefused: the certificate is not one to trust.
            BusUnavailable: the broker does not speak TLS, or refuses ours.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._reason(error) from error
        return True

    def read(self, room: memoryview) -> int:
        """Decrypt into `room`; returns how many bytes, 0 when more must come first.

        Raises:
            BusUnavailable: what came was changed on the way, or the broker gave up.
        """
        try:
            count: Any = self._ssl.read(len(room), room)  # typeshed knows the form without `room` only
            return int(count)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            raise self._reason(error) from error

    def encrypt(self, *parts: bytes) -> bytes:
        """What to send, so that the broker reads these."""
        for part in parts:
            self._ssl.write(part)
        return self._unsent.read()

    def unsent(self) -> bytes:
        """What the cipher itself has to say: the handshake, an alert."""
        return self._unsent.read()

    def farewell(self) -> bytes:
        """What tells the broker that nothing follows."""
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()
        return self._unsent.read()

    def _reason(self, error: ssl.SSLError) -> BusError:
        url, host = self._credentials.url, self._credentials.host
        if not isinstance(error, ssl.SSLCertVerificationError):
            return BusUnavailable(f"{url}: TLS failed: {error.reason or error}")
        if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
            return TlsRefused(
                f"{url}: the broker's certificate is not one for {host}",
                hint="use a name or address that the certificate has, or have one made for this one",
            )
        if error.verify_code in (_EXPIRED, _NOT_YET):
            when = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
            return TlsRefused(
                f"{url}: the broker's certificate {when}",
                hint="see whether this host's clock is right; else the broker needs a new certificate",
            )
        return TlsRefused(
            f"{url}: the broker's certificate is not trusted: {error.verify_message}",
            hint="give the certificate of the broker's authority: --ca FILE, or FEDBUS_CA"
            if self._credentials.ca is None
            else "the CA that was given has not signed it: is it that of this broker?",
        )

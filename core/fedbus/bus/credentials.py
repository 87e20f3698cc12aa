"""Who connects, where to, and with what secret: the one value every connection is made from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote, unquote, urlsplit

from fedbus_schemas.base import TOKEN_PATTERN, Token
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedbus.base.errors import ConfigError, describe

DEFAULT_PORT = 4222
_FORM = "nats://user:password@host:4222, or tls:// to demand TLS"


def is_pem(ca: str) -> bool:
    """Whether a CA is given as PEM text, and not by the path of a file."""
    return "-----BEGIN" in ca


def _lasting(ca: str) -> str:
    """A path that still holds in another folder: credentials are saved."""
    return ca if is_pem(ca) else str(Path(ca).expanduser().absolute())


class Credentials(BaseModel):
    """A broker's address and the identity to use there. The password never shows in `repr` or `str`.

    Attributes:
        url: `nats://host:port`, without user or password; `tls://` demands TLS.
        user: the identity, one subject token: a service, `operator`, or a worker's name.
        password: the secret.
        ca: the authority that must have signed the broker's certificate, as PEM text or the path of a PEM
            file; it demands TLS. None: any that this system trusts, where there is TLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str, StringConstraints(pattern=r"^(nats|tls)://[^/@\s]+:\d{1,5}$")]
    user: Token
    password: Annotated[str, StringConstraints(min_length=1)] = Field(repr=False)
    ca: Annotated[str, AfterValidator(_lasting)] | None = None

    @property
    def host(self) -> str:
        """Whom to dial, and whose certificate it must be; an IPv6 address without brackets."""
        return self.url.partition("://")[2].rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def demands_tls(self) -> bool:
        """Whether nothing may be said to a broker without TLS. Otherwise TLS is used where it demands it."""
        return self.url.startswith("tls://") or self.ca is not None

    @property
    def name(self) -> str:
        """Name of the party that this is."""
        return self.user

    @property
    def inbox_prefix(self) -> str:
        """First token of the party's own reply subjects; the broker lets nobody else subscribe to it."""
        return inbox_prefix(self.user)

    @classmethod
    def from_url(cls, url: str, ca: str | None = None) -> Self:
        """Read `nats://user:password@host:port`, or `tls://`; the port may be left out.

        Args:
            url: the text.
            ca: as the attribute.

        Raises:
            ConfigError: the text is something else. The message does not repeat the password.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError as error:
            raise ConfigError(f"the broker's URL has a wrong host or port: use {_FORM}") from error
        if parts.scheme not in ("nats", "tls"):
            raise ConfigError(f"the broker's URL must begin with nats:// or tls://: use {_FORM}")
        if not host:
            raise ConfigError(f"the broker's URL names no host: use {_FORM}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(f"the broker's URL has something after the port: use {_FORM}")
        if not parts.username or not parts.password:
            raise ConfigError(f"the broker's URL carries no user and password: use {_FORM}")
        user = unquote(parts.username)
        if not re.fullmatch(TOKEN_PATTERN, user):
            raise ConfigError(f"the broker's URL has user {user!r}: use letters, digits, '-' and '_'")
        where = f"{parts.scheme}://{bracketed(host)}:{port}"
        return cls(url=where, user=user, password=unquote(parts.password), ca=ca)

    def trusting(self, ca: str | None, *, tls: bool = False) -> Self:
        """The same with another CA; None: with the one that it has. It demands TLS no less than before.

        Args:
            ca: as the attribute.
            tls: demand TLS, as `tls://` does.
        """
        url = over_tls(self.url) if tls else self.url
        return self.model_copy(update={"url": url, "ca": self.ca if ca is None else _lasting(ca)})

    def to_url(self) -> str:
        """One string with the secret in it, for the environment of a child process; the CA is not in it."""
        scheme, _, address = self.url.partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{address}"

    def save(self, path: Path) -> None:
        """Write a file that only its owner can read; it replaces an older one whole or not at all."""
        write_private(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, unreadable or not a credential.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read the credential {path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigError(f"{path} is not a credential: {describe(error, cls.model_fields)}") from None


def inbox_prefix(name: str) -> str:
    """First token of the reply subjects of the party called `name`."""
    return f"_INBOX_{name}"


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically and durably, readable by its owner only (mode 0600)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def over_tls(url: str) -> str:
    """The same address, where nothing may be said without TLS."""
    return f"tls://{url.partition('://')[2]}"


def bracketed(host: str) -> str:
    """A host as it stands before `:port`; an IPv6 address gets its brackets."""
    return f"[{host}]" if ":" in host else host

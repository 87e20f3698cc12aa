"""The one string by which a worker joins: `fedbus://HOST:PORT/#<id>.<secret>`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import SplitResult, urlsplit

from fedbus_schemas.roster import INVITE_USER, is_invite_id, is_secret

from fedbus.base.errors import ConfigError, InviteRefused
from fedbus.bus.credentials import DEFAULT_PORT, Credentials, bracketed, over_tls

SCHEME = "fedbus://"
_FORM = "fedbus://HOST:PORT/#ID.SECRET, whole and in quotes"


@dataclass(frozen=True, slots=True)
class JoinString:
    """Where to join, and by which invitation. The secret shows in `to_text` only.

    Attributes:
        url: `nats://host:port`, or `tls://`; it is not said in the text which.
        invite: the invitation's id.
        secret: its secret.
        ca: as that of `Credentials`; not in the text.
    """

    url: str
    invite: str
    secret: str = field(repr=False)
    ca: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `fedbus invite create` printed; the port may be left out.

        Raises:
            ConfigError: the text is something else. The message does not repeat the secret.
            InviteRefused: what follows the '#' is no invitation.
        """
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError as error:
            raise ConfigError(f"the join string has a wrong host or port: use {_FORM}") from error
        if parts.scheme != "fedbus":
            raise ConfigError(f"the join string for {spoken(parts)} must begin with {SCHEME}: use {_FORM}")
        if not host or parts.username or parts.path.strip("/") or parts.query:
            raise ConfigError(f"this is no join string: use {_FORM}")
        if not parts.fragment:
            raise ConfigError(
                f"the join string carries no token: use {_FORM}",
                hint="without quotes a shell takes '#' and what follows for a comment",
            )
        invite, _, secret = parts.fragment.partition(".")
        if not is_invite_id(invite) or not is_secret(secret):
            raise InviteRefused(
                "the invitation in the join string is not whole: something in its ID or its SECRET is "
                "missing or wrong",
                hint=f"copy it again, as `fedbus invite create` printed it: {_FORM}",
            )
        return cls(f"nats://{bracketed(host)}:{port}", invite, secret)

    @property
    def credentials(self) -> Credentials:
        """How the holder of the invitation connects, to ask to be let in and for nothing else."""
        return Credentials(url=self.url, user=invite_user(self.invite), password=self.secret, ca=self.ca)

    def trusting(self, ca: str | None, *, tls: bool = False) -> Self:
        """The same for a broker whose certificate that authority signed; None: nothing is said of it.

        Args:
            ca: as the attribute.
            tls: demand TLS, as `tls://` does.
        """
        return replace(self, url=over_tls(self.url) if tls else self.url, ca=ca)

    def to_text(self) -> str:
        """The string itself, with the secret in it."""
        return f"{SCHEME}{self.url.partition('://')[2]}/#{self.invite}.{self.secret}"


def is_meant(text: str) -> bool:
    """Whether a text is a join string, or one with a mistake in its scheme: no other URL has a fragment."""
    return text.strip().startswith(SCHEME) or "#" in text or "://" not in text


def spoken(parts: SplitResult) -> str:
    """As much of a URL as may be printed: `host:port`, nothing that could be a secret."""
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return "that address"
    if not host:
        return "that address"
    return f"{bracketed(host)}:{port}" if port else bracketed(host)


def invite_user(invite: str) -> str:
    """The user as whom the holder of an invitation connects."""
    return INVITE_USER + invite

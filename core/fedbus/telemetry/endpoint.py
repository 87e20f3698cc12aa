"""Where spans go, from OpenTelemetry's own variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from fedbus.base.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_ASKED = "use http://HOST:PORT, such as http://localhost:4318"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OTLP/HTTP receiver of traces. Headers may hold a secret, so they never show in `repr`."""

    scheme: str
    host: str
    port: int
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path.partition('?')[0]}"


def read_endpoint(variables: Mapping[str, str]) -> Endpoint | None:
    """The receiver that the variables name; None when none does.

    Args:
        variables: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is taken as it is, and goes over
            `OTEL_EXPORTER_OTLP_ENDPOINT`, to which `/v1/traces` is added;
            `OTEL_EXPORTER_OTLP_HEADERS` is `key=value,key=value`, percent-encoded.

    Raises:
        ConfigError: names the variable that is wrong, never a header's value.
    """
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    url = variables.get(name)
    if not url:
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        url = variables.get(name)
        if not url:
            return None
        url = url.rstrip("/") + "/v1/traces"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{name} has a wrong host or port: {_ASKED}") from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise ConfigError(f"{name} is no address of an OTLP/HTTP receiver: {_ASKED}")
    if parts.username or parts.password:
        raise ConfigError(f"{name} holds a password: put it into OTEL_EXPORTER_OTLP_HEADERS")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(c.isspace() or not c.isprintable() for c in path):
        raise ConfigError(f"{name} has a path with spaces or characters that are not ASCII")
    headers = _headers(variables.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    return Endpoint(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], path, headers)


def _headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = pair.partition("=")
        name, value = unquote(name.strip()), unquote(value.strip())
        sound = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not (equals and sound and value.isascii() and value.isprintable()):
            raise ConfigError("OTEL_EXPORTER_OTLP_HEADERS must be key=value,key=value, percent-encoded")
        headers[name] = value
    return headers

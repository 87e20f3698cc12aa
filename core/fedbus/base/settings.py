"""Typed settings: flag over `FEDBUS_*` over default. The only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedbus.base.errors import ConfigError, describe, nearest

PREFIX = "FEDBUS_"
S = TypeVar("S", bound="Settings")

# Every FEDBUS_* variable of any process, so that a misspelt one is an error everywhere.
VARIABLES: dict[str, str] = {
    "FEDBUS_DIR": "folder of the local stack (default ./.fedbus)",
    "FEDBUS_URL": "broker to connect to, credentials included: nats://user:password@host:4222, or tls://",
    "FEDBUS_CA": "certificate of the authority that signed the broker's, a file or PEM text; demands TLS",
    "FEDBUS_NATS_SERVER": "path of a nats-server binary to embed instead of the shipped one",
    "FEDBUS_CLIENT": "lean or nats-py: what speaks to the broker (default lean)",
    "FEDBUS_STATE": "folder for a worker's spool and cache",
    "FEDBUS_TELEMETRY": "on or off: whether a process makes spans (default on)",
    "FEDBUS_LOG": "log level: debug, info, warning or error",
}

# OpenTelemetry's own variables that say where spans go.
OTEL_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
)


class Settings(BaseModel):
    """A process's settings: frozen, closed, each field described."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def load(cls: type[S], flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> S:
    """Settings of a process: flags given, then `FEDBUS_<FIELD>`, then defaults.

    Args:
        cls: the settings model.
        flags: what the command line gave; None means not given.
        environ: the environment; the process's own by default.

    Raises:
        ConfigError: an unknown `FEDBUS_*` variable, or a wrong value.
    """
    environ = os.environ if environ is None else environ
    check_environment(environ)
    values = {name: environ[key] for name in cls.model_fields if (key := PREFIX + name.upper()) in environ}
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, cls.model_fields)) from error


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse a `FEDBUS_*` variable that nothing reads.

    Raises:
        ConfigError: names the variable and the nearest known one.
    """
    for name in environ:
        if name.startswith(PREFIX) and name not in VARIABLES:
            # Without the prefix, which makes all of them look alike.
            close = nearest(name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in VARIABLES])
            raise ConfigError(
                f"unknown environment variable {name}"
                + (f"; did you mean {PREFIX}{close}?" if close else ""),
                hint=f"known: {', '.join(VARIABLES)}",
            )


def otel_variables() -> dict[str, str]:
    """OpenTelemetry's variables that are set."""
    return {name: value for name in OTEL_VARIABLES if (value := os.environ.get(name))}


def variable(name: str) -> str | None:
    """The value of one known `FEDBUS_*` variable, or None."""
    if name not in VARIABLES:
        raise ValueError(f"{name} is not declared in VARIABLES")
    return os.environ.get(name) or None

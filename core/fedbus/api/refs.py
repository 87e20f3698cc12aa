"""Runs and rounds as their operator writes them."""

from __future__ import annotations

from fedbus_schemas.ids import parse_ref

from fedbus.base.errors import ConfigError


def read_ref(text: str) -> tuple[str, int | None]:
    """A run's name, and a round's number where `RUN/N` was written.

    Raises:
        ConfigError: the text is neither `RUN` nor `RUN/N`.
    """
    try:
        return parse_ref(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error

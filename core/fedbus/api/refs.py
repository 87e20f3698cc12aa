"""Runs and rounds as their operator writes them."""

from __future__ import annotations

from fedbus_schemas.ids import RoundRef, parse_ref

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


def read_round_ref(text: str, verb: str, only: str) -> RoundRef:
    """One round, written `RUN/N`.

    Args:
        text: what was written.
        verb: of `fedbus round`, for the hint.
        only: why it must be one round.

    Raises:
        ConfigError: it is not.
    """
    run, number = read_ref(text)
    if number is None:
        raise ConfigError(f"{text} is a run; {only}", hint=f"fedbus round {verb} {run}/1")
    return RoundRef(run, number)

"""What workers say of themselves and no stream keeps: beats and progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from fedbus_schemas import subjects
from fedbus_schemas.messages import Beat, Progress
from pydantic import ValidationError

from fedbus.bus.connection import Bus, Message

Said = TypeVar("Said", Beat, Progress)


async def hear_beats(bus: Bus, heard: Callable[[Beat], None]) -> None:
    """Be told every worker's beats for as long as the connection lives. Some may be lost."""
    await bus.subscribe(subjects.ALL_BEATS, _own(Beat, subjects.beat, heard))


async def hear_progress(bus: Bus, heard: Callable[[Progress], None]) -> None:
    """Be told every worker's progress for as long as the connection lives. Some may be lost."""
    await bus.subscribe(subjects.ALL_PROGRESS, _own(Progress, subjects.progress, heard))


def _own(
    kind: type[Said], subject: Callable[[str], str], heard: Callable[[Said], None]
) -> Callable[[Message], None]:
    def hear(message: Message) -> None:
        with suppress(ValidationError):
            said = kind.model_validate_json(message.data)
            # The broker lets a worker speak under its own name only; what it says must agree.
            if message.subject == subject(said.worker):
                heard(said)

    return hear

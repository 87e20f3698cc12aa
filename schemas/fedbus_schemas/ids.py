"""How runs and rounds are written by people: `run-0007` and `run-0007/3`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedbus_schemas.base import is_token


@dataclass(frozen=True, slots=True, order=True)
class RoundRef:
    """One round of one run; prints as `run-0007/3`."""

    run: str
    number: int

    def __str__(self) -> str:
        return f"{self.run}/{self.number}"


def parse_ref(text: str) -> tuple[str, int | None]:
    """Split `RUN` or `RUN/N` into its name and number.

    Raises:
        ValueError: the text is neither.
    """
    run, slash, number = text.partition("/")
    if not is_token(run):
        raise ValueError(f"{text!r} does not name a run: use RUN or RUN/N, such as run-0001/2")
    if not slash:
        return run, None
    if not re.fullmatch(r"[0-9]{1,8}", number):
        raise ValueError(f"{text!r} does not name a round: use RUN/N, such as run-0001/2")
    return run, int(number)


def next_run_name(taken: set[str]) -> str:
    """Name the next run: one above the highest `run-NNNN` that is taken."""
    numbers = [int(m[1]) for name in taken if (m := re.fullmatch(r"run-([0-9]{1,9})", name))]
    return f"run-{max(numbers, default=0) + 1:04d}"

"""One trial of one system, as it is kept in a file; and what several of them say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict


class TrialFailed(Exception):
    """A system did not do what was to be measured; the message says what it said itself."""


class Measured(BaseModel):
    """What a trial that went to its end showed.

    Attributes:
        seconds: of each round that counts.
        server_bytes: peak resident memory of all processes of the server side together.
        client_bytes: the same for the largest client.
        cpu_s: CPU seconds of all processes per round.
        hub_cpu_s: of these, what the process between server and clients took: the broker, the relay.
        stored_bytes: what that process had written to disk per round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: list[float]
    server_bytes: int
    client_bytes: int
    cpu_s: float
    hub_cpu_s: float | None = None
    stored_bytes: float | None = None


class Trial(BaseModel):
    """One line of the record.

    Attributes:
        load: the machine's load average over the last minute, at the end.
        others: cores that processes outside this benchmark took meanwhile, on average.
        error: why nothing was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: str
    system: str
    repetition: int
    load: float
    others: float
    measured: Measured | None = None
    error: str | None = None


class Summary(BaseModel):
    """All repetitions of one system in one setting: medians of the trials' own figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int
    round_s: float
    least_s: float
    most_s: float
    server_bytes: float
    client_bytes: float
    cpu_s: float
    hub_cpu_s: float | None
    stored_bytes: float | None


def summarise(trials: Iterable[Trial]) -> Summary | None:
    """The trials that measured something, as one; the time is the median of the trials' medians."""
    done = [trial.measured for trial in trials if trial.measured is not None]
    if not done:
        return None
    medians = [median(each.seconds) for each in done]
    return Summary(
        trials=len(done),
        round_s=median(medians),
        least_s=min(medians),
        most_s=max(medians),
        server_bytes=median(each.server_bytes for each in done),
        client_bytes=median(each.client_bytes for each in done),
        cpu_s=median(each.cpu_s for each in done),
        hub_cpu_s=_median([each.hub_cpu_s for each in done]),
        stored_bytes=_median([each.stored_bytes for each in done]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None

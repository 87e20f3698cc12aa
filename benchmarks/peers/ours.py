"""fedbus itself, driven as `make bench` does, and the plain sockets under it."""

from __future__ import annotations

import asyncio

import relay
import rounds
from fedbus.base.errors import FedbusError
from usage import KindUsage

from peers.settings import Setting
from peers.trial import Measured, TrialFailed

SERVER = ("broker", "enroll", "planner", "aggregator", "evaluator")


def measure_fedbus(setting: Setting) -> Measured:
    """A broker, the four services and workers with their trainers; telemetry on, no TLS.

    Memory is the sum of the processes' own peaks, which is at least the peak of their sum.

    Raises:
        TrialFailed: a run did not finish.
    """
    _, count = setting.rounds["fedbus"]
    what = rounds.Setting(setting.key, setting.label, setting.clients, setting.elements, count, None)
    try:
        result = asyncio.run(rounds.measure(what, count, "on", setting.limit_s))
    except (rounds.DidNotFinish, FedbusError, OSError, TimeoutError, ValueError) as error:
        raise TrialFailed(f"{type(error).__name__}: {error}") from error
    used, broker = result.usage, result.usage["broker"]
    watchdog = used["watchdog"].peak
    return Measured(
        seconds=result.seconds,
        server_bytes=_peaks([used[kind] for kind in SERVER]) + len(SERVER) * watchdog,
        client_bytes=used["agent"].peak + used["trainer"].peak + watchdog,
        cpu_s=sum(kind.cpu_s for kind in used.values()) / result.rounds,
        hub_cpu_s=broker.cpu_s / result.rounds,
        stored_bytes=broker.written / result.rounds,
    )


def measure_sockets(setting: Setting, system: str) -> Measured:
    """Plain sockets, through a relay or directly.

    Raises:
        TrialFailed: a process ended.
    """
    warm_ups, count = setting.rounds[system]
    try:
        floor = relay.measure(setting.clients, setting.elements, warm_ups, count, direct=system == "direct")
    except OSError as error:
        raise TrialFailed(str(error)) from error
    return Measured(
        seconds=floor.seconds,
        server_bytes=floor.server_bytes,
        client_bytes=floor.client_bytes,
        cpu_s=floor.cpu_s,
        hub_cpu_s=floor.relay_cpu_s,
        stored_bytes=floor.relay_written,
    )


def _peaks(kinds: list[KindUsage]) -> int:
    return sum(kind.count * kind.peak for kind in kinds)

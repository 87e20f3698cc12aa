"""Streams and buckets, made idempotently: the whole storage of a federation in one table."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from fedbus_schemas import subjects

from fedbus.base.errors import BusUnavailable, NotAcked, ServerTooOld
from fedbus.bus.connection import Bus
from fedbus.bus.store import NO_STREAM, JetStreamError, call, persist

log = logging.getLogger(__name__)

OLDEST_SERVER = (2, 12)
NEEDS = "republish of stored entries, per-message TTL, batched direct gets and asynchronous persistence"
LEASE_TTL_S = 2
TRIES, TRY_S = 10, 0.5  # to make a stream
ANNOUNCEMENT_TTL_S = 31 * 86400  # above the longest deadline of a plan
# Shares of the account's storage. They sum to less than one: the broker must say "full" before the disk does.
SHARES = {
    subjects.UPDATES: 0.55,
    subjects.MODELS: 0.30,
    subjects.ROUNDS: 0.05,
    subjects.EVENTS: 0.01,
    subjects.TELEMETRY: 0.01,
}
SMALL_SHARE, SMALL_BYTES = 0.01, 64 << 20  # of each of the others, whichever is less
# A message with spans. With the number kept of each party, it bounds what a noisy worker can fill.
TELEMETRY_BYTES = 64 << 10
UNLIMITED_STORAGE = 20 << 30  # what to assume of a site's own broker that sets no limit


def streams(storage_bytes: int) -> list[dict[str, Any]]:
    """Every stream's configuration, for an account that may store so many bytes."""

    def stream(name: str, pattern: str, **more: Any) -> dict[str, Any]:
        small = min(SMALL_BYTES, int(storage_bytes * SMALL_SHARE))
        size = int(storage_bytes * SHARES[name]) if name in SHARES else small
        return {
            "name": name,
            "subjects": [pattern],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_bytes": size,
            "allow_direct": True,
            **more,
        }

    write_once = {"max_msgs_per_subject": 1, "discard_new_per_subject": True}
    last_only = {
        "max_msgs_per_subject": 1,
        "discard": "old",
        "allow_msg_ttl": True,
        "max_age": ANNOUNCEMENT_TTL_S * 10**9,
    }
    # What a power cut loses here is a hint, not a record.
    loose = {"discard": "old", "persist_mode": "async"}
    buckets = [
        stream(
            f"KV_{name}",
            f"$KV.{name}.>",
            max_msgs_per_subject=8,
            discard="new",
            allow_rollup_hdrs=True,
            deny_delete=True,
        )
        for name in (subjects.RUNS_BUCKET, subjects.ROSTER_BUCKET, subjects.REGISTRY_BUCKET)
    ]
    return [
        stream(
            subjects.ROUNDS,
            subjects.ALL_LOGS,
            deny_delete=True,
            republish={
                "src": subjects.ALL_LOGS,
                "dest": "fb.log.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}",
            },
        ),
        stream(subjects.ANNOUNCE, subjects.ALL_ANNOUNCEMENTS, **last_only),
        stream(subjects.INBOX, "fb.inbox.*", **last_only),
        stream(
            subjects.UPDATES,
            "fb.update.>",
            **write_once,
            republish={
                "src": "fb.update.*.*.*.*.*.manifest",
                "dest": "fb.manifest." + ".".join(f"{{{{wildcard({i})}}}}" for i in range(1, 6)),
                "headers_only": True,
            },
        ),
        stream(subjects.MODELS, "fb.model.>", **write_once),
        stream(subjects.EVENTS, "fb.event.>", **loose),
        stream(
            subjects.TELEMETRY,
            subjects.ALL_TELEMETRY,
            max_msgs_per_subject=1000,
            max_msg_size=TELEMETRY_BYTES,
            **loose,
        ),
        stream(
            subjects.LEASES,
            "fb.lease.*",
            max_msgs_per_subject=1,
            max_age=LEASE_TTL_S * 10**9,
            **loose,
        ),
        *buckets,
    ]


async def provision(bus: Bus) -> None:
    """Make what is missing, and bring what exists to this configuration.

    Raises:
        ServerTooOld: the server lacks what fedbus needs.
        JetStreamError: it refuses, and goes on to.
    """
    await persist(bus, lambda: _check(bus))
    limits = (await persist(bus, lambda: call(bus, "INFO")))["limits"]
    storage = int(limits.get("max_storage", -1))
    for config in streams(storage if storage > 0 else UNLIMITED_STORAGE):
        await _insist(bus, config)


async def _insist(bus: Bus, config: dict[str, Any]) -> None:
    """Make a stream; a broker that reads its accounts again refuses for a moment what it then allows."""
    for left in reversed(range(TRIES)):
        try:
            await persist(bus, lambda: _make(bus, config))
            break
        except JetStreamError as error:
            if not left:
                raise
            log.warning("%s refused, trying again: %s", config["name"], error, extra={"action": "provision"})
        await asyncio.sleep(TRY_S)


async def _check(bus: Bus) -> None:
    check_server(bus)


async def _make(bus: Bus, config: dict[str, Any]) -> None:
    name = config["name"]
    try:
        have = (await call(bus, f"STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.err_code != NO_STREAM:
            raise
        await call(bus, f"STREAM.CREATE.{name}", config, timeout_s=30.0)
        log.info("made %s", name, extra={"action": "provision"})
        return
    # Sizes follow the disk at the first start; a later start does not shrink what holds data.
    wanted = {**config, "max_bytes": have["max_bytes"]}
    if any(have.get(key) != value for key, value in wanted.items()):
        await call(bus, f"STREAM.UPDATE.{name}", {**have, **wanted}, timeout_s=30.0)
        log.info("updated %s", name, extra={"action": "provision"})


def check_server(bus: Bus) -> None:
    """Refuse a server that is too old.

    Raises:
        ServerTooOld: names its version and what it lacks.
    """
    version = bus.link.server_version
    found = tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])
    if found < OLDEST_SERVER:
        raise ServerTooOld(
            f"nats-server {version} is too old: fedbus needs 2.12 or later for {NEEDS}",
            hint="leave --url out to use the embedded server, or upgrade yours",
        )


async def wait_provisioned(bus: Bus) -> None:
    """Return when the planner has made the streams; says once what it waits for."""
    told = False
    last = streams(UNLIMITED_STORAGE)[-1]["name"]
    while True:
        try:
            await call(bus, f"STREAM.INFO.{last}")
            return
        except (JetStreamError, BusUnavailable, NotAcked) as error:
            if not told:
                log.info("waiting for the planner to make the streams: %s", error, extra={"action": "wait"})
                told = True
        await asyncio.sleep(0.2)
        await bus.wait_up()

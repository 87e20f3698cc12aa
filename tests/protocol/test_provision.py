"""The storage of a federation: DESIGN section 6 as the broker reports it, made once and kept so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fedbus.base.errors import AuthRefused, ServerTooOld
from fedbus.bus import Bus, Message
from fedbus.bus import provision as provisioning
from fedbus.bus.lean import LeanLink
from fedbus.bus.provision import (
    ANNOUNCEMENT_TTL_S,
    LEASE_TTL_S,
    OLDEST_SERVER,
    UNLIMITED_STORAGE,
    check_server,
    provision,
    streams,
    wait_provisioned,
)
from fedbus.bus.store import JetStreamError, call
from fedbus.runtime.disk import LEAST, MOST
from fedbus.runtime.rights import STREAMS
from support.buses import Ask, Tapped, buses, parties
from support.natsd import Stack, broker

RECORD = {"discard": "new", "max_msgs_per_subject": -1, "max_age": 0, "allow_msg_ttl": False}
WRITE_ONCE = {**RECORD, "max_msgs_per_subject": 1, "discard_new_per_subject": True}
LAST = {
    "discard": "old",
    "max_msgs_per_subject": 1,
    "max_age": ANNOUNCEMENT_TTL_S * 10**9,
    "allow_msg_ttl": True,
    "discard_new_per_subject": False,
}
LOOSE = {"discard": "old", "persist_mode": "async", "max_age": 0}
BUCKET = {**RECORD, "max_msgs_per_subject": 8, "deny_delete": True, "allow_rollup_hdrs": True}
TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "FB_ROUNDS": ("fb.round.*.*.log.*", {**RECORD, "deny_delete": True}),
    "FB_ANNOUNCE": ("fb.announce.*", LAST),
    "FB_INBOX": ("fb.inbox.*", LAST),
    "FB_UPDATES": ("fb.update.>", WRITE_ONCE),
    "FB_MODELS": ("fb.model.>", WRITE_ONCE),
    "FB_EVENTS": ("fb.event.>", LOOSE),
    "FB_TELEMETRY": ("fb.otel.*", {**LOOSE, "max_msgs_per_subject": 1000}),
    "FB_LEASES": ("fb.lease.*", {**LOOSE, "max_msgs_per_subject": 1, "max_age": LEASE_TTL_S * 10**9}),
    "KV_FB_RUNS": ("$KV.FB_RUNS.>", BUCKET),
    "KV_FB_ROSTER": ("$KV.FB_ROSTER.>", BUCKET),
    "KV_FB_REGISTRY": ("$KV.FB_REGISTRY.>", BUCKET),
}
REPUBLISH = {"FB_ROUNDS": ("fb.round.*.*.log.*", False), "FB_UPDATES": (None, True)}


async def config_of(bus: Bus, stream: str) -> dict[str, Any]:
    config: dict[str, Any] = (await call(bus, f"STREAM.INFO.{stream}"))["config"]
    return config


@pytest.mark.parametrize("stream", TABLE)
async def test_a_stream_is_as_designed(stack: Stack, stream: str) -> None:
    subject, expected = TABLE[stream]
    async with parties(stack, "operator") as (operator,):
        config = await config_of(operator, stream)
    assert config["subjects"] == [subject]
    assert {key: config.get(key, False) for key in expected} == expected
    common = {"storage": "file", "retention": "limits", "num_replicas": 1, "allow_direct": True}
    assert {key: config.get(key) for key in common} == common
    # No stream stores what a schedule or a consumer could do behind our back.
    assert not config.get("allow_msg_schedules")
    assert not config.get("sealed")
    if stream in REPUBLISH:
        source, headers_only = REPUBLISH[stream]
        republish = config["republish"]
        assert source in (None, republish["src"])
        assert bool(republish.get("headers_only")) is headers_only
    else:
        assert "republish" not in config
    # What an acknowledgement promises is on disk, but for hints.
    assert (config.get("persist_mode") == "async") is (stream in ("FB_EVENTS", "FB_TELEMETRY", "FB_LEASES"))


async def test_these_are_all(stack: Stack) -> None:
    async with parties(stack, "operator") as (operator,):
        assert sorted((await call(operator, "STREAM.NAMES"))["streams"]) == sorted(TABLE)
    assert set(TABLE) == set(STREAMS)


async def test_sizes_sum_below_the_accounts_storage(stack: Stack) -> None:
    async with parties(stack, "operator") as (operator,):
        limit = (await call(operator, "INFO"))["limits"]["max_storage"]
        sizes = [(await config_of(operator, stream))["max_bytes"] for stream in TABLE]
    assert min(sizes) > 0
    assert sum(sizes) < limit


@pytest.mark.parametrize("storage", [LEAST, 1 << 30, 3 << 30, UNLIMITED_STORAGE, MOST])
def test_sizes_sum_below_any_storage(storage: int) -> None:
    sizes = [config["max_bytes"] for config in streams(storage)]
    assert min(sizes) >= 2 << 20, "each holds at least one message"
    assert sum(sizes) < storage


@pytest.mark.parametrize("times", [2, 99])
async def test_a_broker_that_refuses_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As one does that reads its accounts again; one that goes on refusing is told of."""
    monkeypatch.setattr(provisioning, "TRY_S", 0.0)
    refused = b'{"error": {"code": 503, "err_code": 10039, "description": "not enabled for account"}}'
    asked: list[str] = []

    class Refused(Tapped):
        async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
            if subject == "$JS.API.STREAM.CREATE.FB_UPDATES":
                asked.append(subject)
                if len(asked) <= times:
                    return Message(subject, refused, {})
            return await ask()

    async with broker(tmp_path) as own:
        planner = await Refused.connect(own.credentials("planner"))
        try:
            if times > provisioning.TRIES:
                with pytest.raises(JetStreamError, match="not enabled"):
                    await provision(planner)
                assert len(asked) == provisioning.TRIES
            else:
                await provision(planner)
                assert len(asked) == times + 1
                assert (await config_of(planner, "FB_UPDATES"))["name"] == "FB_UPDATES"
        finally:
            await planner.close()


async def test_a_second_time_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And what was changed since is brought back, whatever is stored stays."""
    caplog.set_level(logging.INFO, "fedbus.bus.provision")

    def said() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "fedbus.bus.provision"]
        caplog.clear()
        return found

    async with broker(tmp_path) as own, buses(own.credentials("planner")) as (planner,):
        await provision(planner)
        assert said() == [f"made {stream}" for stream in TABLE]
        before = {stream: await config_of(planner, stream) for stream in TABLE}
        await provision(planner)
        assert said() == []
        assert {stream: await config_of(planner, stream) for stream in TABLE} == before

        changed: dict[str, dict[str, Any]] = {
            "FB_INBOX": {"max_age": 10**12},
            "FB_UPDATES": {"discard": "old", "discard_new_per_subject": False},
            "FB_ROUNDS": {"republish": None, "allow_direct": False},
            "FB_TELEMETRY": {"max_msgs_per_subject": 5},
            "KV_FB_RUNS": {"max_msgs_per_subject": 2},
        }
        for stream, values in changed.items():
            await call(planner, f"STREAM.UPDATE.{stream}", {**before[stream], **values})
            assert await config_of(planner, stream) != before[stream]
        await provision(planner)
        assert sorted(said()) == sorted(f"updated {stream}" for stream in changed)
        assert {stream: await config_of(planner, stream) for stream in TABLE} == before

        # Sizes are set once: what holds data does not shrink when the disk is fuller at a later start.
        larger = {**before["FB_MODELS"], "max_bytes": before["FB_MODELS"]["max_bytes"] + 4096}
        await call(planner, "STREAM.UPDATE.FB_MODELS", larger)
        await provision(planner)
        assert (await config_of(planner, "FB_MODELS"))["max_bytes"] == larger["max_bytes"]


async def test_only_the_planner_provisions(stack: Stack) -> None:
    async with parties(stack, "operator", "enroll") as (operator, enroll):
        before = await config_of(operator, "FB_INBOX")
        with pytest.raises(AuthRefused):
            await call(enroll, "STREAM.UPDATE.FB_INBOX", {**before, "max_age": 10**12})
        assert await config_of(operator, "FB_INBOX") == before
        await wait_provisioned(enroll)


async def test_an_old_server_is_refused(stack: Stack) -> None:
    async with parties(stack, "planner") as (planner,):
        check_server(planner)
        assert isinstance(planner.link, LeanLink)
        for version, accepted in (("2.11.9", False), ("2.12.0", True), ("3.0.0", True), ("2.9.0", False)):
            planner.link._info["version"] = version
            if accepted:
                check_server(planner)
            else:
                with pytest.raises(
                    ServerTooOld, match=rf"nats-server {version} is too old: fedbus needs 2\.12"
                ):
                    await provision(planner)
    assert OLDEST_SERVER == (2, 12)

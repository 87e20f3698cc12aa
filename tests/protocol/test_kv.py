"""Key-value buckets: written by compare-and-set, read from the leader, in the layout of NATS key-value."""

from __future__ import annotations

import asyncio

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import AuthRefused
from fedbus.bus.kv import Bucket
from fedbus.bus.store import call
from fedbus_schemas import subjects
from support.buses import parties
from support.natsd import Stack


async def test_a_value_is_set_at_its_revision(stack: Stack) -> None:
    key = f"kv-{random_token()}"
    async with parties(stack, "planner", "operator") as (planner, operator):
        bucket, reader = Bucket(planner, subjects.RUNS_BUCKET), Bucket(operator, subjects.RUNS_BUCKET)
        assert await reader.get(key) is None
        first = await bucket.set(key, b"one", 0)
        assert first is not None
        assert await bucket.set(key, b"again", 0) is None, "it exists"
        assert await bucket.set(key, b"stale", first - 1) is None
        second = await bucket.set(key, b"two", first)
        assert second is not None
        assert second > first
        assert await bucket.set(key, b"late", first) is None, "someone was faster"
        entry = await reader.get(key)
        assert entry is not None
        assert (entry.key, entry.value, entry.revision) == (key, b"two", second)
        assert await bucket.set(f"{key}-empty", b"", 0) is not None
        empty = await reader.get(f"{key}-empty")
        assert empty is not None
        assert empty.value == b""


async def test_of_two_writers_one_wins(stack: Stack) -> None:
    key = f"kv-{random_token()}"
    async with parties(stack, "planner", "planner") as writers:
        buckets = [Bucket(bus, subjects.RUNS_BUCKET) for bus in writers]
        revision = 0
        for i in range(20):
            answers = await asyncio.gather(
                *(bucket.set(key, f"{i}.{n}".encode(), revision) for n, bucket in enumerate(buckets))
            )
            won = [answer for answer in answers if answer is not None]
            assert len(won) == 1
            entry = await buckets[0].get(key)
            assert entry is not None
            assert (entry.revision, entry.value) == (won[0], f"{i}.{answers.index(won[0])}".encode())
            revision = won[0]


async def test_keys_and_history(stack: Stack) -> None:
    run = f"kv-{random_token()}"
    async with parties(stack, "planner") as (planner,):
        bucket = Bucket(planner, subjects.RUNS_BUCKET)
        revision = 0
        for i in range(12):
            revision = await bucket.set(f"{run}-b", str(i).encode(), revision) or pytest.fail("not set")
        await bucket.set(f"{run}-a", b"", 0)
        assert [key for key in await bucket.keys() if key.startswith(run)] == [f"{run}-a", f"{run}-b"]
        # Eight values of history: what a tool shows, and a bound.
        counts = await call(
            planner,
            f"STREAM.INFO.KV_{subjects.RUNS_BUCKET}",
            {"subjects_filter": f"$KV.{subjects.RUNS_BUCKET}.{run}-b"},
        )
        assert list(counts["state"]["subjects"].values()) == [8]


async def test_each_bucket_has_one_writer(stack: Stack) -> None:
    writers = {
        subjects.RUNS_BUCKET: "planner",
        subjects.ROSTER_BUCKET: "enroll",
        subjects.REGISTRY_BUCKET: "evaluator",
    }
    names = tuple(writers.values())
    async with parties(stack, *names) as made:
        for bucket, writer in writers.items():
            for name, bus in zip(names, made, strict=True):
                if name == writer:
                    assert await Bucket(bus, bucket).set(f"kv-{random_token()}", b"x", 0)
                else:
                    with pytest.raises(AuthRefused):
                        await Bucket(bus, bucket).set("mine", b"x", 0)

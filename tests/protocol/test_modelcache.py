"""Models as files of a host: downloaded once for all, trusted only while somebody vouches, and never many."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fedbus.bus import Bus
from fedbus.bus import modelcache as caching
from fedbus.bus.hostlock import HostLock
from fedbus.bus.modelcache import IN_USE, KEPT, MOST_FILES, CachedModel, ModelCache
from fedbus.bus.models import PublishedModel, publish_model, read_manifest
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus_schemas.update import TensorSpec
from support.buses import parties, until
from support.counting import Counting
from support.natsd import Stack

SIZE = 600_000  # three chunks
CHUNKS = 3
SMALL = 100
TWO_CHUNKS = CHUNK_ELEMENTS + 1
ONE_CHUNK = 200_000  # written in a thread, while others ask


async def publish(bus: Bus, values: Vector, run: str = "cached") -> str:
    return (await published(bus, values, run)).digest


async def published(bus: Bus, values: Vector, run: str = "cached") -> PublishedModel:
    table = [TensorSpec(name="w", shape=[len(values)], dtype="float32", group="lossy")]

    async def encoded() -> AsyncIterator[bytes]:
        for span in Grid.of(table).spans:
            yield Framing("dense").encode(span, values[span.offset : span.end])

    return await publish_model(bus, encoded(), run=run, round=1, parent=None, codec="dense", table=table)


def vector(seed: int, size: int = SIZE) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@asynccontextmanager
async def hosts(stack: Stack) -> AsyncIterator[tuple[Bus, Counting]]:
    """Who publishes, and the connection that the caches of one host share here."""
    async with parties(stack, "aggregator") as (aggregator,):
        bus = await Counting.connect(stack.credentials("w-cache"))
        try:
            yield aggregator, bus
        finally:
            await bus.close()


def names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix == suffix}


def owned(folder: Path) -> list[Path]:
    return list(folder.glob("own-*"))


def check(model: CachedModel, values: Vector) -> None:
    np.testing.assert_array_equal(np.fromfile(model.path, np.float32), values)
    assert sum(tensor.size for tensor in model.table) == len(values)


async def test_a_host_downloads_a_model_once(stack: Stack, tmp_path: Path) -> None:
    values = vector(1)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        caches = [ModelCache(bus, tmp_path) for _ in range(5)]
        steps: list[float] = []
        for model in await asyncio.gather(*(cache.get(digest, steps.append) for cache in caches)):
            check(model, values)
        assert bus.chunks == CHUNKS
        assert (len(steps), steps[-1]) == (CHUNKS, 1.0)
        assert [len(names(tmp_path, suffix)) for suffix in (".f32", ".lock", ".part")] == [1, 1, 0]
        await caches[0].get(digest, steps.append)
        assert bus.chunks == CHUNKS


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda data: data, 0),
        (lambda data: b"\1" + data[1:], 1),
        (lambda data: data[:-4], 1),
        (lambda data: data + b"more", 0),
        (lambda data: b"", CHUNKS),
    ],
)
async def test_what_nobody_vouches_for_is_compared(stack: Stack, tmp_path: Path, damage, again: int) -> None:
    values = vector(2)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        first = ModelCache(bus, tmp_path)
        path = (await first.get(digest)).path
        path.write_bytes(damage(path.read_bytes()))
        first.close()
        assert bus.chunks == CHUNKS
        check(await ModelCache(bus, tmp_path).get(digest), values)
        assert bus.chunks == CHUNKS + again


async def test_a_broken_download_goes_on_with_the_chunks_it_had(stack: Stack, tmp_path: Path) -> None:
    values = vector(3)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        bus.most = 2
        steps: list[float] = []
        breaks = asyncio.create_task(ModelCache(bus, tmp_path).get(digest, steps.append))
        await until(lambda: len(steps) == 2, "two chunks are there")
        waits = asyncio.create_task(ModelCache(bus, tmp_path).get(digest))
        await asyncio.sleep(0)
        breaks.cancel()
        await asyncio.gather(breaks, return_exceptions=True)
        bus.most = None
        async with asyncio.timeout(10):
            check(await waits, values)
        assert bus.chunks == CHUNKS


async def test_who_downloads_and_was_stopped_holds_nobody_up(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "STUCK_S", 0.1)
    values = vector(8)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        stopped = HostLock.take(tmp_path / f"{digest}.lock", alone=True)
        assert stopped is not None
        (tmp_path / f"{digest}.part").write_bytes(b"begun")
        cache = ModelCache(bus, tmp_path, limit_bytes=0)
        async with asyncio.timeout(20):
            own = await cache.get(digest)
        check(own, values)
        with cache.making(own.table) as part:
            values.tofile(part)
            async with asyncio.timeout(20):
                await cache.add(digest, own.manifest, part)
        check(await cache.get(digest), values)
        assert bus.chunks == CHUNKS
        assert not names(tmp_path, ".f32"), "nothing is shared"
        stopped.release()
        check(await ModelCache(bus, tmp_path).get(digest), values)
        assert bus.chunks == 2 * CHUNKS
        assert names(tmp_path, ".f32") == {digest}


async def test_a_file_that_was_removed_while_it_is_used(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "TRIES", 2)
    values = vector(4)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        uses = ModelCache(bus, tmp_path)
        (await uses.get(digest)).path.unlink()
        check(await ModelCache(bus, tmp_path).get(digest), values)
        (await uses.get(digest)).path.unlink()
        check(await uses.get(digest), values)


@pytest.mark.parametrize("size", [SMALL, SIZE])
async def test_a_folder_that_was_cleaned_away_is_made_anew(stack: Stack, tmp_path: Path, size: int) -> None:
    async with hosts(stack) as (aggregator, bus):
        first, second = [(await publish(aggregator, vector(n, size)), vector(n, size)) for n in (7, 8)]
        cache = ModelCache(bus, tmp_path / "models")
        await cache.get(first[0])
        shutil.rmtree(tmp_path / "models")
        check(await cache.get(first[0]), first[1])
        shutil.rmtree(tmp_path / "models")
        check(await cache.get(second[0]), second[1])


@pytest.mark.parametrize("size", [SMALL, ONE_CHUNK])
async def test_small_models_come_with_their_manifest(stack: Stack, tmp_path: Path, size: int) -> None:
    """Each process has its own file for them, and uses it again for others, of other sizes."""
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(n, size - n % 2)) for n in range(5)]
        caches = [ModelCache(bus, tmp_path) for _ in range(3)]
        paths = set()
        for n, digest in enumerate(digests):
            for cache in caches:
                check(await cache.get(digest), vector(n, size - n % 2))
                paths.add((await cache.get(digest)).path)
            if n:
                check(await caches[0].get(digests[n - 1]), vector(n - 1, size - (n - 1) % 2))
        assert bus.chunks == 0
        assert len(paths) <= 3 * (IN_USE + 1)
        assert len({path.parent for path in paths}) == 3
        caches[1].close()
        assert len(owned(tmp_path)) == 2


async def test_a_path_of_an_own_file_never_means_another_model(stack: Stack, tmp_path: Path) -> None:
    """Not where the folder is cleaned away while it is used, nor where another process is there then."""
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(n, SMALL)) for n in range(3)]
        cache, other = ModelCache(bus, tmp_path / "m"), ModelCache(bus, tmp_path / "m")
        await cache.get(digests[0])
        shutil.rmtree(tmp_path / "m")
        check(await other.get(digests[1]), vector(1, SMALL))
        check(await cache.get(digests[2]), vector(2, SMALL))
        check(await cache.get(digests[0]), vector(0, SMALL))
        check(await other.get(digests[1]), vector(1, SMALL))


async def test_the_files_of_a_process_that_was_killed_are_deleted(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, vector(1, SMALL))
        (tmp_path / "own-killed").mkdir()
        (tmp_path / "own-killed" / "lock").touch()
        (tmp_path / "own-killed" / "1.f32").write_bytes(b"left")
        uses = ModelCache(bus, tmp_path)
        await uses.get(digest)
        await ModelCache(bus, tmp_path).get(digest)
        assert not (tmp_path / "own-killed").exists()
        assert len(owned(tmp_path)) == 2


async def test_old_models_go_unless_they_are_used(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(n, TWO_CHUNKS + n)) for n in range(MOST_FILES + 5)]
        uses, passes = ModelCache(bus, tmp_path), ModelCache(bus, tmp_path)
        used = await uses.get(digests[0])
        for digest in digests[1:]:
            await passes.get(digest)
        held = names(tmp_path, ".f32")
        assert digests[0] in held
        assert held > set(digests[-MOST_FILES + 1 :])
        assert len(held) <= MOST_FILES + 3
        assert names(tmp_path, ".lock") == held
        check(used, vector(0, TWO_CHUNKS))

        # A limit in bytes leaves those that are used.
        lean = ModelCache(bus, tmp_path, limit_bytes=0)
        uses.close()
        passes.close()
        await lean.get(digests[0])
        await lean.get(digests[1])
        await lean.get(digests[2])
        assert names(tmp_path, ".f32") == set(digests[3 - IN_USE : 3])


async def test_held_models_stay_however_many_pass(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(seed, TWO_CHUNKS)) for seed in range(IN_USE + 6)]
        held, passing = digests[: IN_USE + 2], digests[IN_USE + 2 :]
        cache = ModelCache(bus, tmp_path, limit_bytes=0)
        for digest in [*held, held[0], *passing]:
            if digest in held:
                await cache.hold(digest)
            else:
                await cache.get(digest)
        assert names(tmp_path, ".f32") == {*held, *passing[-IN_USE:]}
        for digest in held:
            cache.release(digest)
        await cache.get(passing[0])
        await cache.get(passing[1])
        await cache.get(passing[2])
        assert names(tmp_path, ".f32") >= {held[0], *passing[3 - IN_USE : 3]}, "one was held twice"
        assert not set(held[1:]) & names(tmp_path, ".f32")


async def test_the_file_of_a_held_small_model_is_not_used_again(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(seed, SMALL)) for seed in range(IN_USE + 4)]
        cache = ModelCache(bus, tmp_path)
        held = await cache.hold(digests[0])
        for digest in digests[1:]:
            await cache.get(digest)
        check(held, vector(0, SMALL))


async def test_an_old_model_is_written_over_once_nobody_uses_it(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        digests = [await publish(aggregator, vector(seed)) for seed in range(IN_USE + KEPT + 2)]
        cache, inodes = ModelCache(bus, tmp_path), []
        uses = ModelCache(bus, tmp_path)
        used = await uses.get(digests[0])
        for seed, digest in enumerate(digests):
            model = await cache.get(digest)
            check(model, vector(seed))
            inodes.append(model.path.stat().st_ino)
        assert inodes[-2:] == inodes[1:3], "the oldest that nobody uses"
        assert len(set(inodes)) == len(inodes) - 2
        check(used, vector(0))
        values = vector(99)
        with cache.making(used.table) as part:
            assert part.stat().st_ino == inodes[3]
            values.tofile(part)
        assert not part.exists(), "what is not added is removed"


async def test_what_was_just_made_is_taken_over(stack: Stack, tmp_path: Path) -> None:
    values = vector(6)
    async with hosts(stack) as (aggregator, bus):
        made = await published(aggregator, values)
        digest = made.digest
        cache = ModelCache(bus, tmp_path)
        part = tmp_path / "made.part"
        values.tofile(part)
        await cache.add(digest, made.manifest, part)
        check(await cache.get(digest), values)
        check(await ModelCache(bus, tmp_path).get(digest), values)
        assert bus.chunks == 0


async def test_what_is_being_made_stays_and_what_was_left_goes(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        first, second = [await publish(aggregator, vector(seed, TWO_CHUNKS)) for seed in (8, 9)]
        makes, lean = ModelCache(bus, tmp_path), ModelCache(bus, tmp_path, limit_bytes=0)
        with makes.making((await read_manifest(bus, first)).table) as part:
            part.write_bytes(b"model")
            left = tmp_path / "0123.part"  # of a process that was killed
            left.write_bytes(b"model")
            await lean.get(first)
            assert part.exists()
            assert not left.exists()
        await lean.get(second)
        assert names(tmp_path, ".part") == set()
        assert names(tmp_path, ".lock") == {first, second}


async def test_a_folder_that_may_only_be_read_is_left_alone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container has it. A test may run as root, whom no mode keeps from writing."""
    values = vector(7)
    async with hosts(stack) as (aggregator, bus):
        digest = await publish(aggregator, values)
        for writable in (True, False):
            monkeypatch.setattr(caching.os, "access", lambda *_, may=writable: may)
            with caching.model_cache(bus, tmp_path) as cache:
                path = (await cache.get(digest)).path
                assert path.is_relative_to(tmp_path) == writable
            assert path.exists() == writable, "what is temporary is gone"

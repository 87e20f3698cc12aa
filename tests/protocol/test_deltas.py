"""Models that travel as differences: made from what a host has, or from a whole one; or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused, DigestMismatch, RemoteContractError, StreamMissing
from fedbus.bus import Bus
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.models import load_values, publish_model, read_manifest
from fedbus.bus.store import put
from fedbus.codec.delta import values_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid
from fedbus_schemas import subjects
from fedbus_schemas.update import MOST_DELTAS, ModelManifest
from support.buses import parties, until
from support.counting import Counting
from support.deltas import EXACT, Published, publish_chain, publish_delta, publish_whole
from support.natsd import Stack

SIZE = 600_000
CHUNKS = 4  # three lossy ones, and one of exact values
LOSSY = 3
SMALL = 100
Sizes = pytest.mark.parametrize("size", [SMALL, SIZE])


@asynccontextmanager
async def hosts(stack: Stack) -> AsyncIterator[tuple[Bus, Counting]]:
    """Who publishes, and the connection of one host."""
    async with parties(stack, "aggregator") as (aggregator,):
        bus = await Counting.connect(stack.credentials("w-delta"))
        try:
            yield aggregator, bus
        finally:
            await bus.close()


async def holds(cache: ModelCache, model: Published) -> Path:
    """The file of a model, which is bit for bit what was published."""
    found = await cache.get(model.digest)
    np.testing.assert_array_equal(np.fromfile(found.path, np.uint32), model.values.view(np.uint32))
    return found.path


def names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix == suffix}


async def stored(bus: Bus, manifest: ModelManifest) -> str:
    await put(bus, subjects.model_manifest(manifest.digest()), manifest.pack())
    return manifest.digest()


@Sizes
async def test_who_has_the_parent_downloads_the_difference_only(
    stack: Stack, tmp_path: Path, size: int
) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, f"follows-{size}", size, 3)
        cache = ModelCache(bus, tmp_path)
        for number, model in enumerate(models, 1):
            assert (await holds(cache, model)).is_relative_to(tmp_path)
            assert bus.chunks == (number * CHUNKS if size == SIZE else 0)
        weight = [model.manifest.size_bytes for model in models]
        assert size == SMALL or max(weight[1:]) < weight[0] / 10


@Sizes
async def test_who_comes_late_starts_from_the_last_whole_one(stack: Stack, tmp_path: Path, size: int) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, f"late-{size}", size, 3)
        await holds(ModelCache(bus, tmp_path), models[-1])
        assert bus.chunks == (4 * LOSSY + 1 if size == SIZE else 0), "exact values are read once"
        left = {models[-1].digest} if size == SIZE else set()  # a small one is in a folder of its process
        assert names(tmp_path, ".f32") == left, "what lies between leaves no files"
        np.testing.assert_array_equal(await load_values(bus, models[2].manifest), models[2].values)


async def test_who_missed_some_starts_from_what_it_had(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, "missed", SIZE, 4)
        cache = ModelCache(bus, tmp_path)
        await holds(cache, models[1])
        before = bus.chunks
        await holds(cache, models[4])
        assert bus.chunks - before == 3 * LOSSY + 1


@pytest.mark.parametrize("damaged", ["first", "last", "short", "empty", "longer"])
async def test_a_parent_that_nobody_vouches_for_is_seen_by_what_comes_out(
    stack: Stack, tmp_path: Path, damaged: str
) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, f"parent-{damaged}", SIZE, 2)
        cache = ModelCache(bus, tmp_path)
        path = await holds(cache, models[1])
        cache.close()
        data = bytearray(path.read_bytes())
        match damaged:
            case "first":
                data[1] ^= 1
            case "last":
                data[4 * (SIZE - 41)] ^= 1
            case "short":
                del data[4 * (SIZE - 41) :]
            case "empty":
                data.clear()
            case _:
                data += b"more"
        path.write_bytes(data)
        before = bus.chunks
        await holds(ModelCache(bus, tmp_path), models[2])
        # Each lossy chunk that came out wrong is made once more, from the whole model and two differences.
        wrong = {"empty": LOSSY, "longer": 0}.get(damaged, 1)
        assert bus.chunks - before == CHUNKS + 3 * wrong


@pytest.mark.parametrize(("at", "again"), [(None, 0), (4, 2), (4 * (SIZE - 1), 1)])
async def test_a_file_that_nobody_vouches_for_is_compared_without_its_parent(
    stack: Stack, tmp_path: Path, at: int | None, again: int
) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, f"compared-{at}", SIZE, 1)
        cache = ModelCache(bus, tmp_path)
        path = await holds(cache, models[1])
        cache.close()
        data = bytearray(path.read_bytes())
        if at is not None:
            data[at] ^= 1
        path.write_bytes(data)
        before = bus.chunks
        await holds(ModelCache(bus, tmp_path), models[1])
        assert bus.chunks - before == again, "a lossy chunk of the whole model and one of the difference"


async def test_a_broken_download_goes_on_with_the_chunks_it_had(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, "broken", SIZE, 1)
        cache = ModelCache(bus, tmp_path)
        await holds(cache, models[0])
        bus.most = bus.chunks + 2
        steps: list[float] = []
        breaks = asyncio.create_task(ModelCache(bus, tmp_path).get(models[1].digest, steps.append))
        await until(lambda: len(steps) == 2, "two chunks are there")
        waits = asyncio.create_task(ModelCache(bus, tmp_path).get(models[1].digest))
        await asyncio.sleep(0)
        breaks.cancel()
        await asyncio.gather(breaks, return_exceptions=True)
        bus.most = None
        await waits
        await holds(cache, models[1])
        assert bus.chunks == 2 * CHUNKS, "nothing is read twice"


async def test_many_at_once_make_it_once(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, "at-once", SIZE, 2)
        caches = [ModelCache(bus, tmp_path) for _ in range(4)]
        await asyncio.gather(*(holds(cache, models[2]) for cache in caches))
        assert bus.chunks == 3 * LOSSY + 1


@Sizes
@pytest.mark.parametrize("codec", ["topk", "int8", "dense"])
async def test_any_codec_can_carry_a_difference(stack: Stack, tmp_path: Path, size: int, codec: str) -> None:
    async with hosts(stack) as (aggregator, bus):
        (whole,) = await publish_chain(aggregator, f"{codec}-{size}", size, 0)
        model = await publish_delta(aggregator, whole, whole.values * 2, codec)
        await holds(ModelCache(bus, tmp_path), model)


# What is refused


async def test_values_that_do_not_come_out_are_refused(stack: Stack, tmp_path: Path) -> None:
    """As on a machine that adds otherwise than the aggregator's."""
    async with hosts(stack) as (aggregator, bus):
        whole, model = await publish_chain(aggregator, "comes-out", SIZE, 1)
        lying = model.manifest.model_copy(update={"values": [*whole.manifest.chunks]})
        digest = await stored(aggregator, lying)
        cache = ModelCache(bus, tmp_path)
        for _ in ("without the parent", "with it"):
            with pytest.raises(DigestMismatch, match="the sum's SHA-256"):
                await cache.get(digest)
            await holds(cache, whole)
        assert not (tmp_path / f"{digest}.f32").exists()


async def test_a_sum_that_is_not_finite_is_refused(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        large = np.full(SMALL, 3e38, np.float32)
        whole = await publish_whole(aggregator, large, "infinite")
        with np.errstate(over="ignore"):
            sums = [values_digest((large + large)[:-EXACT]), values_digest(large[-EXACT:])]

        async def chunks() -> AsyncIterator[bytes]:
            for span in Grid.of(whole.manifest.table).spans:
                yield Framing("dense").encode(span, large[span.offset : span.end])

        hostile = await publish_model(
            aggregator, chunks(), run="infinite", round=1, parent=whole.digest, codec="dense",
            table=whole.manifest.table, values=sums,
        )  # fmt: skip
        with pytest.raises(ChunkRefused, match="non-finite"):
            await ModelCache(bus, tmp_path).get(hostile.digest)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parent": None}, "a difference needs a parent"),
        ({"values": []}, "a digest of the values of each chunk"),
        ({"values": ["0" * 64] * 5}, "a digest of the values of each chunk"),
        ({"values": ["x"]}, "values"),
    ],
)
async def test_a_manifest_that_is_half_a_difference_is_refused(
    stack: Stack, changes: dict[str, Any], said: str
) -> None:
    async with hosts(stack) as (aggregator, bus):
        _, model = await publish_chain(aggregator, "half", SMALL, 1)
        digest = await stored(aggregator, model.manifest.model_copy(update=changes))
        with pytest.raises(RemoteContractError, match=said):
            await read_manifest(bus, digest)


async def test_a_parent_with_other_tensors_or_none_is_refused(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        _, model = await publish_chain(aggregator, "other", SMALL, 1)
        other = await publish_whole(aggregator, np.ones(SMALL + 1, np.float32), "another", exact=0)
        cache = ModelCache(bus, tmp_path)
        to_another = await stored(aggregator, model.manifest.model_copy(update={"parent": other.digest}))
        with pytest.raises(RemoteContractError, match="other tensors"):
            await cache.get(to_another)
        await holds(cache, other)
        with pytest.raises(RemoteContractError, match="other tensors"):
            await cache.get(to_another)  # its file is too long, and what comes out is wrong
        to_none = await stored(aggregator, model.manifest.model_copy(update={"parent": "0" * 64}))
        with pytest.raises(StreamMissing):
            await cache.get(to_none)


async def test_a_chain_has_an_end(stack: Stack, tmp_path: Path) -> None:
    async with hosts(stack) as (aggregator, bus):
        models = await publish_chain(aggregator, "endless", SMALL, MOST_DELTAS + 1)
        cache = ModelCache(bus, tmp_path)
        with pytest.raises(RemoteContractError, match=f"over {MOST_DELTAS} differences away"):
            await cache.get(models[-1].digest)
        await holds(cache, models[-2])
        await holds(cache, models[-1])

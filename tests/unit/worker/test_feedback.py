"""Error feedback across rounds, crashes and damage: what was lost is sent later, once."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.base.errors import ChunkRefused
from fedbus.codec import Vector
from fedbus.codec.framing import Framing
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus_schemas.log import Member
from fedbus_schemas.messages import Announcement
from fedbus_schemas.update import TensorSpec, UpdateManifest
from fedbus_worker import spool as spools
from fedbus_worker.assignments import Assignment
from fedbus_worker.encoding import Encoding, UpdateDamaged
from fedbus_worker.spool import Spool, SpooledUpdate, Spools
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import NOW, digest, plan

LOSSY, EXACT = CHUNK_ELEMENTS + 1000, 40  # two lossy chunks and an exact one
TABLE = [
    TensorSpec(name="w", shape=(LOSSY,), dtype="float32"),
    TensorSpec(name="mean", shape=(EXACT,), dtype="float32", group="exact"),
]
SIZE = LOSSY + EXACT
CODEC = {"name": "ecq", "step": 4}


class Host:
    """A worker's state folder, and what the rounds of one run do to it."""

    def __init__(self, folder: Path, codec: Any = None) -> None:
        self.folder = folder
        self.plan = plan(codec={"up": codec or CODEC})
        self.sent: dict[int, bytes] = {}

    def news(self, number: int, base: str | None = "base") -> Announcement:
        return Announcement(
            run="run-1", run_at=NOW, round=number, state="open", plan=self.plan,
            plan_digest=self.plan.digest(), base=digest(base) if base else None, members=[],
            opened_at=NOW, deadline_s=60.0, traceparent="",
        )  # fmt: skip

    def spool(self, number: int) -> Spool:
        """As a process finds it that starts now."""
        return Spools(self.folder / "spool").open(self.news(number), "0")

    async def encode(self, number: int, delta: Vector, *, base: str | None = "base") -> UpdateManifest:
        """Encode a round's difference as the worker does."""
        self.train(number, delta)
        self.sent = await self.encode_again(number, base=base)
        spool = self.spool(number)
        assert spool.update
        assert spool.update.manifest
        return spool.update.manifest

    def train(self, number: int, delta: Vector) -> None:
        """Leave a difference and what was said of it."""
        spool = self.spool(number)
        spool.begin(number)
        delta.tofile(spool.delta)
        spool.save(
            SpooledUpdate(
                round=number, attempt="a", table=TABLE, num_examples=1, metrics={}, boot=spools.boot_id()
            )
        )

    async def encode_again(
        self, number: int, *, base: str | None = "base", most: int | None = None
    ) -> dict[int, bytes]:
        """Encode what a process that starts now has to; after `most` chunks it is killed."""
        sent = dict[int, bytes]()
        with Encoding(*self.seat(number, base)) as encoding:
            async for index, data in encoding:
                sent[index] = data
                if len(sent) == most:
                    return sent
            encoding.finish()
        return sent

    def seat(self, number: int, base: str | None = "base") -> tuple[Assignment, Spool, SpooledUpdate]:
        """What an encoding takes."""
        spool = self.spool(number)
        trained = spool.trained()
        assert trained
        return Assignment(self.news(number, base), Member(worker="w1")), spool, trained

    def decoded(self, number: int) -> Vector:
        """What the receiver gets of what this process encoded."""
        spool, out = self.spool(number), np.empty(SIZE, np.float32)
        assert spool.update
        manifest = spool.update.manifest
        assert manifest
        framing = Framing(manifest.codec)
        for span, named in zip(Grid.of(TABLE).spans, manifest.chunks, strict=True):
            framing.decode(self.sent[span.index], named, span, out[span.offset : span.end])
        return out

    def settle(self, number: int, counted: bool | None) -> None:
        self.spool(number).settle(counted)

    @property
    def residual(self) -> Vector:
        """What is kept; zeros where nothing is."""
        if not self.residual_file.exists():
            return np.zeros(LOSSY, np.float32)
        return np.fromfile(self.residual_file, np.float32)[:LOSSY]

    @property
    def residual_file(self) -> Path:
        return self.folder / "spool" / "run-1.0" / "residual"


def _delta(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


async def test_what_is_lost_is_sent_later(tmp_path: Path) -> None:
    host = Host(tmp_path)
    true, sent = np.zeros(SIZE), np.zeros(SIZE)
    for number in range(1, 9):
        delta = _delta(number)
        await host.encode(number, delta)
        got = host.decoded(number)
        np.testing.assert_array_equal(got[LOSSY:], delta[LOSSY:], err_msg="exact tensors are exact")
        host.settle(number, counted=True)
        true += delta
        sent += got
        np.testing.assert_allclose(sent[:LOSSY] + host.residual, true[:LOSSY], atol=1e-4)
    assert np.linalg.norm(true - sent) < 0.75 * np.linalg.norm(true)


async def test_what_was_broken_off_is_encoded_again_as_the_same_bytes(tmp_path: Path) -> None:
    """A worker that was killed while it encoded goes on under the same attempt."""
    hosts = [Host(tmp_path / name) for name in ("whole", "broken")]
    for host in hosts:
        await host.encode(1, _delta(1))
        host.settle(1, counted=True)
    whole, broken = hosts
    manifest = await whole.encode(2, _delta(2))
    broken.train(2, _delta(2))
    first = await broken.encode_again(2, most=1)
    assert not broken.spool(2).lost.exists()
    broken.spool(2).note_stored(0)
    rest = await broken.encode_again(2)
    assert (list(first), list(rest)) == ([0], [1, 2]), "nothing acknowledged is sent again"
    assert first | rest == whole.sent
    update = broken.spool(2).update
    assert update
    assert update.manifest == manifest
    assert broken.spool(2).lost.read_bytes() == whole.spool(2).lost.read_bytes()


async def test_with_a_manifest_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    host.settle(1, counted=True)
    await host.encode(2, _delta(2))
    lost = host.spool(2).lost.read_bytes()
    for stored in ([], [2, 0], [1]):
        for index in stored:
            host.spool(2).note_stored(index)
        missing = {index: data for index, data in host.sent.items() if index not in host.spool(2).stored()}
        assert await host.encode_again(2) == missing
        assert host.spool(2).lost.read_bytes() == lost
    assert not missing


@pytest.mark.parametrize("file", ["delta.f32", "residual"])
async def test_damage_that_changes_a_chunk_is_noticed_before_it_is_sent(tmp_path: Path, file: str) -> None:
    """Nothing is synced: a power cut may leave `update` beside values that never got to the disk."""
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    host.settle(1, counted=True)
    await host.encode(2, _delta(2))
    path = host.spool(2).folder / file
    with path.open("r+b") as values:
        values.seek(4 * CHUNK_ELEMENTS)
        values.write(bytes(2000))
    encoded = Encoding(*host.seat(2))
    with encoded, pytest.raises(UpdateDamaged, match="chunk 1"):
        assert [index async for index, _ in encoded]
    assert host.spool(2).update, "who trains again forgets it"


async def test_an_update_that_did_not_count_changes_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    host.settle(1, counted=True)
    kept = host.residual
    await host.encode(2, _delta(2))
    second = host.decoded(2)
    np.testing.assert_array_equal(host.residual, kept, err_msg="before the round is over")
    host.settle(2, counted=False)
    np.testing.assert_array_equal(host.residual, kept)
    await host.encode(3, _delta(2))
    np.testing.assert_array_equal(host.decoded(3), second)


@pytest.mark.parametrize("offered", [True, False])
async def test_of_an_unknown_end_what_was_offered_counts(tmp_path: Path, offered: bool) -> None:
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    if offered:
        host.spool(1).offer()
    host.settle(1, counted=None)
    assert host.residual.any() == offered


# Where the worker is killed, what became of the update, and how often it was killed before that.
steps = st.tuples(
    st.sampled_from(["encoded", "offered", "settling", "settled"]),
    st.sampled_from([True, False, None]),
    st.integers(0, 2),
)


@given(rounds=st.lists(steps, min_size=1, max_size=5))
@settings(derandomize=True, database=None, deadline=None, max_examples=25)
def test_no_kill_loses_or_doubles(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[str, bool | None, int]]
) -> None:
    asyncio.run(_with_kills(tmp_path_factory.mktemp("host"), rounds))


async def _with_kills(folder: Path, rounds: list[tuple[str, bool | None, int]]) -> None:
    """A new process for each step: all that there is, is on disk."""
    true, sent = np.zeros(LOSSY), np.zeros(LOSSY)
    for number, (killed, counted, before) in enumerate(rounds, 1):
        for most in range(before):  # after a difference was encoded, or half of it, and before `update`
            Host(folder).train(number, _delta(number + 100))
            await Host(folder).encode_again(number, most=most or None)
            (Host(folder).spool(number).folder / "update").unlink()
        delta, host = _delta(number), Host(folder)
        await host.encode(number, delta)
        if killed != "encoded":
            Host(folder).spool(number).offer()
        got = host.decoded(number)[:LOSSY]
        if counted or (counted is None and killed != "encoded"):
            true += delta[:LOSSY]
            sent += got
        spool = Host(folder).spool(number)
        if killed == "settling" and counted is not False and spool.residual.exists():
            spool.residual.replace(spool.losing)
        if killed == "settled" and counted is not False:  # after the renames, before the rest
            spool.lost.replace(spool.residual)
        Host(folder).settle(number, counted)
        np.testing.assert_allclose(sent + Host(folder).residual, true, atol=1e-4)


async def test_after_a_power_cut_what_was_lost_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lost` has the name of another round's then, perhaps: it is used by nobody, nor is what was before."""
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    host.settle(1, counted=True)
    await host.encode(2, _delta(2))
    monkeypatch.setattr(spools, "boot_id", lambda: "the machine was started again")
    host.settle(2, counted=True)
    assert not host.residual_file.exists()
    assert not host.spool(3).lost.exists()


async def test_the_first_weights_travel_as_they_are_and_lose_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    await host.encode(0, _delta(1), base=None)
    np.testing.assert_array_equal(host.decoded(0), _delta(1))
    host.settle(0, counted=True)
    assert not host.residual_file.exists()


@pytest.mark.parametrize("codec", ["int8", {"name": "ecq", "error_feedback": False}])
async def test_without_feedback_nothing_is_kept(tmp_path: Path, codec: Any) -> None:
    host = Host(tmp_path, codec)
    await host.encode(1, _delta(1))
    assert not host.spool(1).lost.exists()
    host.settle(1, counted=True)
    assert not host.residual_file.exists()


async def test_a_codec_without_feedback_sends_what_is_left_of_another(tmp_path: Path) -> None:
    host = Host(tmp_path, "auto")
    delta = _delta(1)
    manifest = await host.encode(1, delta)
    assert manifest.codec == "ecq"
    assert (manifest.chosen or "").startswith("ecq, step 2: ")
    first = host.decoded(1)
    host.settle(1, counted=True)
    host.plan = plan(codec={"up": "int8"})
    await host.encode(2, np.zeros(SIZE, np.float32))
    np.testing.assert_allclose(first + host.decoded(2), delta, atol=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_what_is_not_finite_is_refused_and_not_kept(tmp_path: Path, value: float) -> None:
    host = Host(tmp_path)
    delta = _delta(1)
    delta[5] = value
    await host.encode(1, delta)
    with pytest.raises(ChunkRefused, match="non-finite"):
        host.decoded(1)
    host.settle(1, counted=True)
    assert not host.residual[:CHUNK_ELEMENTS].any()
    assert host.residual[CHUNK_ELEMENTS:].any()


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty"])
async def test_damage_is_noticed_and_left_out(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path)
    await host.encode(1, _delta(1))
    host.settle(1, counted=True)
    kept = host.residual
    path = host.residual_file
    data = bytearray(path.read_bytes())
    match damage:
        case "flip":
            data[100] ^= 1
        case "cut":
            del data[-1:]
        case "longer":
            data += b"\0"
        case _:
            data.clear()
    path.write_bytes(data)
    await host.encode(2, np.zeros(SIZE, np.float32))
    assert "left out" in caplog.text
    used = host.decoded(2)[:LOSSY] + np.fromfile(host.spool(2).lost, np.float32)[:LOSSY]
    whole = slice(CHUNK_ELEMENTS, None) if damage == "flip" else slice(0, 0)  # chunks that are not damaged
    expected = np.zeros_like(kept)
    expected[whole] = kept[whole]
    np.testing.assert_allclose(used, expected, atol=1e-6)


async def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = 12
    table = [TensorSpec(name="w", shape=(chunks * CHUNK_ELEMENTS,), dtype="float32")]
    monkeypatch.setitem(globals(), "TABLE", table)
    delta = np.random.default_rng(1).standard_normal(chunks * CHUNK_ELEMENTS, np.float32)
    host = Host(tmp_path)
    await host.encode(1, delta)
    host.settle(1, counted=True)
    tracemalloc.start()
    try:
        await host.encode(2, delta)
        assert tracemalloc.get_traced_memory()[1] < 5 * 4 * CHUNK_ELEMENTS
    finally:
        tracemalloc.stop()

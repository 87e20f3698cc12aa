"""Every kind of wrong update is refused by name, its worker is told, and the others get their model."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from fedbus.cli.output import mishaps
from fedbus_schemas.messages import Announcement
from fedbus_schemas.update import TensorSpec
from support.federation import federation
from support.natsd import Stack
from support.scripted import Scripted, Update, honest

ELEMENTS = 300_000  # two chunks, 1.2 MB
VALUES = np.linspace(-1, 1, ELEMENTS, dtype=np.float32)
OTHER = "0" * 64


def nan(update: Update) -> Update:
    values = bytearray(update.chunks[1])
    values[-4:] = struct.pack("<f", float("nan"))
    return update.with_chunks(update.chunks[0], bytes(values))


def truncated(update: Update) -> Update:
    return update.with_chunks(update.chunks[0], update.chunks[1][:-400])


def cut_on_the_way(update: Update) -> Update:
    return replace(update, chunks={0: update.chunks[0], 1: update.chunks[1][:-400]})


def swapped(update: Update) -> Update:
    return update.with_chunks(update.chunks[1], update.chunks[0])


def swapped_in_storage(update: Update) -> Update:
    return replace(update, chunks={0: update.chunks[1], 1: update.chunks[0]})


def header(**lies: Any) -> Callable[[Update], Update]:
    def lie(update: Update) -> Update:
        (length,) = struct.unpack_from("<H", update.chunks[0])
        true = msgpack.unpackb(update.chunks[0][2 : 2 + length])
        packed = msgpack.packb({**true, **lies})
        return update.with_chunks(
            struct.pack("<H", len(packed)) + packed + update.chunks[0][2 + length :], update.chunks[1]
        )

    return lie


def one_chunk_short(update: Update) -> Update:
    return update.with_chunks(update.chunks[0])


def table(update: Update) -> Update:
    return update.saying(table=[TensorSpec(name="w", shape=(ELEMENTS,), dtype="float32")])


# Who lies how, and what is said of it.
LIES: dict[str, tuple[Callable[[Update], Update], str, str]] = {
    "nan": (nan, "chunk-refused", "non-finite values"),
    "truncated": (truncated, "chunk-refused", "dense"),
    "cut-on-the-way": (cut_on_the_way, "digest-mismatch", "chunk 1: SHA-256 is "),
    "swapped": (swapped, "chunk-refused", "chunk 0 has 258048 from 0"),
    "swapped-in-storage": (swapped_in_storage, "digest-mismatch", "chunk 0: SHA-256 is "),
    "lies-of-offset": (header(offset=258_048), "chunk-refused", "258048 elements from 258048"),
    "lies-of-count": (header(count=10**9), "chunk-refused", "1000000000 elements from 0"),
    "lies-of-codec": (header(codec="int8"), "chunk-refused", "codec is int8, the plan says dense"),
    "lies-of-header": (header(more=1), "chunk-refused", "header"),
    "one-chunk-short": (one_chunk_short, "wrong-shape", "has 1 chunks, the model has 2"),
    "another-round": (lambda u: u.saying(round=7), "wrong-manifest", "/7 "),
    "another-worker": (lambda u: u.saying(worker="good"), "wrong-manifest", "good"),
    "another-plan": (lambda u: u.saying(plan=OTHER), "wrong-plan", "made under another plan"),
    "another-base": (lambda u: u.saying(base=OTHER), "wrong-base", "is a delta to another model"),
    "another-codec": (lambda u: u.saying(codec="bf16"), "wrong-codec", "coded bf16, the plan says dense"),
    "has-a-table": (table, "wrong-table", "no base model"),
    "too-large": (lambda u: u.saying(size_bytes=2_000_001), "too-large", "weighs 2.0 MB, allowed 2 MB"),
    "lies-of-size": (lambda u: u.saying(size_bytes=1_100_000), "wrong-size", "weigh more than the 1100000"),
    "two-bodies": (lambda u: u.saying(body=u.chunks[0]), "wrong-shape", "carries a body"),
    "no-manifest": (lambda u: replace(u, packed=b"\xc1 not msgpack"), "bad-manifest", "manifest refused"),
    "half-a-manifest": (lambda u: replace(u, packed=u.manifest.pack()[:-9]), "bad-manifest", "manifest"),
    "no-examples": (lambda u: u.saying(num_examples=0), "bad-manifest", "num_examples"),
    "no-chunks": (lambda u: replace(u, chunks={}), "stream-missing", ".0 is not stored in FB_UPDATES"),
}


async def test_each_wrong_update_is_refused_by_name_and_the_others_make_the_model(
    stack: Stack, tmp_path: Path
) -> None:
    plan = {
        "train": {"elements": ELEMENTS},
        "cohort": {"min": len(LIES) + 2},
        "close": {"quorum": 2},
        "limits": {"mb_per_worker": 2.0},
    }

    def telling(lie: Callable[[Update], Update]) -> Callable[[Scripted, Announcement], Any]:
        async def answer(worker: Scripted, news: Announcement) -> None:
            await worker.send(lie(worker.make(news, VALUES)))

        return answer

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("good", honest(VALUES, 1))
        await parties.script("better", honest(-VALUES, 3))
        for name, (lie, _, _) in LIES.items():
            await parties.script(name, telling(lie))
        report = await parties.finished(await parties.start(plan, "lies"))
        (round_,) = report.rounds
        np.testing.assert_allclose(await parties.model(report.model), -VALUES / 2, atol=1e-6)
        assert sorted(u.worker for u in round_.accepted_updates) == ["better", "good"]
        refused = {r.worker: r for r in round_.rejected}
        assert sorted(refused) == sorted(LIES)
        for name, (_, code, reason) in LIES.items():
            assert (refused[name].code, reason in refused[name].reason) == (code, True), refused[name]
            (notice,) = [n for n in await parties.scripted[name].notices() if n.round == 1]
            assert (notice.run, notice.code) == ("lies", code)
            assert notice.reason == refused[name].reason
        # What `round show` and `round watch` print.
        shown = mishaps(report)
        for name, (_, code, _) in LIES.items():
            assert f"lies/1: {name} rejected: {refused[name].reason} [{code}]" in shown


async def test_a_body_that_is_not_what_its_manifest_names(stack: Stack, tmp_path: Path) -> None:
    """A small update travels inside its manifest."""

    async def answer(worker: Scripted, news: Announcement) -> None:
        good, other = (worker.make(news, value * np.ones(1000, np.float32)) for value in (1, 2))
        body = {"right": good.chunks[0], "wrong": other.chunks[0], "lost": None}[worker.name]
        await worker.send(good.saying(body=body), ["manifest"])

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in ("right", "wrong", "lost"):
            await parties.script(name, answer)
        plan = {"train": {"elements": 1000}, "cohort": {"min": 3}, "close": {"quorum": 1}}
        report = await parties.finished(await parties.start(plan, "bodies"))
        assert (await parties.model(report.model) == 1.0).all()
        said = {r.worker: r.code for r in report.rounds[0].rejected}
        assert said == {"wrong": "digest-mismatch", "lost": "stream-missing"}


async def test_the_first_valid_manifest_of_a_worker_counts_and_no_other(stack: Stack, tmp_path: Path) -> None:
    both_sent, may_close = asyncio.Event(), asyncio.Event()

    async def twice(worker: Scripted, news: Announcement) -> None:
        first = worker.make(news, np.ones(25_000, np.float32))
        second = worker.make(news, 9 * np.ones(25_000, np.float32))
        await worker.send(first)
        await parties.until(lambda: parties.round("twice", 1).accepted, "the first is accepted")
        await worker.send(second)
        await worker.send(first)  # once more, the same bytes: nothing is stored
        both_sent.set()

    async def late(worker: Scripted, news: Announcement) -> None:
        await may_close.wait()
        await worker.send(worker.make(news, 3 * np.ones(25_000, np.float32)))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("double", twice)
        await parties.script("slow", late)
        run = await parties.start({"cohort": {"min": 2}}, "twice")
        await both_sent.wait()
        await parties.until(lambda: parties.round(run, 1).rejected, "the second is rejected")
        may_close.set()
        report = await parties.finished(run)
        (round_,) = report.rounds
        assert sorted(u.worker for u in round_.accepted_updates) == ["double", "slow"]
        (refused,) = round_.rejected
        assert (refused.worker, refused.code) == ("double", "duplicate")
        assert refused.reason.endswith("of double counts already")
        assert (await parties.model(report.model) == 2.0).all()


async def test_a_chunk_cannot_be_overwritten(stack: Stack, tmp_path: Path) -> None:
    """Neither before its manifest nor once it is accepted: who reads it again reads the same."""
    overwritten, may_close = asyncio.Event(), asyncio.Event()

    async def before(worker: Scripted, news: Announcement) -> None:
        first, second = (worker.make(news, sign * VALUES) for sign in (1, -1))
        second = replace(second, seat=first.seat).saying(attempt=first.manifest.attempt)
        await worker.send(first, [0, 1])
        await worker.send(second)  # the broker keeps the first chunks

    async def after(worker: Scripted, news: Announcement) -> None:
        true = worker.make(news, 3 * VALUES)
        await worker.send(true)
        await parties.until(lambda: parties.round(news.run, 1).accepted_from("after", "0"), "it is accepted")
        answer = await worker.bus.request(true.subject(0), worker.make(news, 9 * VALUES).chunks[0])
        assert b"maximum messages per subject exceeded" in answer.data
        overwritten.set()

    async def slow(worker: Scripted, news: Announcement) -> None:
        await may_close.wait()
        await worker.send(worker.make(news, VALUES))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name, answer in (("before", before), ("after", after), ("slow", slow)):
            await parties.script(name, answer)
        plan = {"train": {"elements": ELEMENTS}, "cohort": {"min": 3}, "close": {"quorum": 2}}
        run = await parties.start(plan, "overwrites")
        await overwritten.wait()
        await parties.aggregator.crash()
        await parties.aggregator.start()
        may_close.set()
        report = await parties.finished(run)
        (refused,) = report.rounds[0].rejected
        assert (refused.worker, refused.code) == ("before", "digest-mismatch")
        assert refused.reason.startswith("chunk 0: SHA-256 is ")
        assert sorted(u.worker for u in report.rounds[0].accepted_updates) == ["after", "slow"]
        np.testing.assert_allclose(await parties.model(report.model), 2 * VALUES, atol=1e-6)


async def test_an_update_after_the_cut_off_is_late(stack: Stack, tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def late(worker: Scripted, news: Announcement) -> None:
        await closed.wait()
        await worker.send(worker.make(news, 100 * np.ones(25_000, np.float32)))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        await parties.script("in-time", honest(np.ones(25_000, np.float32)))
        slow = await parties.script("slow", late)
        plan = {"cohort": {"min": 2}, "close": {"deadline_s": 2.0}}
        run = await parties.start(plan, "late")
        await parties.until(lambda: parties.round(run, 1).accepted, "one is accepted")
        await parties.aggregator.crash()  # so that the round stays closed and not yet folded
        await parties.until(lambda: parties.round(run, 1).closing, "the deadline passes")
        closed.set()
        await parties.until(lambda: (run, 1) in slow.sent, "the late one is stored")
        await parties.aggregator.start()
        report = await parties.finished(run)
        assert [u.worker for u in report.rounds[0].accepted_updates] == ["in-time"]
        assert [(r.worker, r.code, r.reason) for r in report.rounds[0].rejected] == [
            ("slow", "late", "stored after the round was closing")
        ]
        assert (await parties.model(report.model) == 1.0).all()


async def test_an_outsider_s_update_does_not_count(stack: Stack, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def answer(worker: Scripted, news: Announcement) -> None:
        await go.wait()
        await worker.send(worker.make(news, np.ones(25_000, np.float32)))

    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        insider = await parties.script("insider", answer, site="north")
        outsider = await parties.script("outsider", site="south")
        run = await parties.start({"cohort": {"require": {"site": "north"}}}, "outsider")
        await parties.until(lambda: (run, 1) in insider.news, "round 1 is announced")
        await outsider.send(outsider.make(insider.news[run, 1], 50 * np.ones(25_000, np.float32)))
        await parties.until(lambda: parties.round(run, 1).rejected, "it is rejected")
        go.set()
        report = await parties.finished(run)
        assert [(r.worker, r.code, r.reason) for r in report.rounds[0].rejected] == [
            ("outsider", "not-in-cohort", "outsider has no seat in this round")
        ]
        assert (await parties.model(report.model) == 1.0).all()

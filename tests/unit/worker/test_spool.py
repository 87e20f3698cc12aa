"""An update on disk: a worker killed anywhere goes on with the attempt that it had."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Announcement
from fedbus_schemas.update import TensorSpec, UpdateManifest
from fedbus_worker import spool as spools
from fedbus_worker.record import Record
from fedbus_worker.spool import Spool, SpooledRun, SpooledUpdate, Spools, boot_id
from hypothesis import given
from hypothesis import strategies as st
from support.rounds import NOW, digest, plan

TABLE = [TensorSpec(name="w", shape=(3,), dtype="float32")]


def _spooled(folder: Path, chunks: int = 3) -> tuple[Spool, SpooledUpdate]:
    """As the worker leaves it when encoding is done."""
    spool = Spool(folder / "run-1.0")
    spool.belong(NOW)
    spool.delta.write_bytes(bytes(12))
    manifest = UpdateManifest(
        run="run-1", round=3, worker="w1", attempt="0123abcd", plan=digest("plan"), base=digest("base"),
        codec="int8", num_examples=7, metrics={"loss": 0.1}, chunks=[digest(str(i)) for i in range(chunks)],
        size_bytes=chunks,
    )  # fmt: skip
    update = _trained(3).model_copy(update={"manifest": manifest})
    spool.save(update)
    return spool, update


def _trained(number: int) -> SpooledUpdate:
    return SpooledUpdate(
        round=number, attempt="0123abcd", table=TABLE, num_examples=7, metrics={"loss": 0.1}, boot=boot_id()
    )


def _news(number: int, run: str = "run-1", run_at: float = NOW) -> Announcement:
    return Announcement(
        run=run, run_at=run_at, round=number, state="open", plan=plan(), plan_digest=plan().digest(),
        base=digest("base"), members=[], opened_at=NOW, deadline_s=60.0, traceparent="",
    )  # fmt: skip


def _unsent(spool: Spool) -> list[int]:
    assert spool.update is not None
    assert spool.update.manifest is not None
    return sorted(set(range(len(spool.update.manifest.chunks))) - spool.stored())


def test_before_training_is_done_there_is_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a")
    assert spool.update is None
    spool.delta.write_bytes(b"\0\0\0\0")
    assert Spool(tmp_path / "a").trained() is None


def test_a_restart_finds_the_same_update(tmp_path: Path) -> None:
    spool, update = _spooled(tmp_path)
    again = Spool(spool.folder)
    assert (again.update, again.trained()) == (update, update)
    assert not again.sent
    spool.mark_sent()
    assert spool.sent
    assert Spool(spool.folder).sent


def test_another_attempt_begins_with_nothing(tmp_path: Path) -> None:
    spool, _ = _spooled(tmp_path)
    spool.note_stored(1)
    spool.mark_sent()
    spool.begin(3)
    for each in (spool, Spool(spool.folder)):
        assert (each.update, each.sent, each.stored()) == (None, False, set())


@pytest.mark.parametrize("encoded", [False, True])
def test_what_was_trained_need_not_be_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: bool
) -> None:
    spool, update = _spooled(tmp_path)
    if not encoded:
        update = _trained(3)
        spool.save(update)
    spool.note_stored(1)
    again = Spool(spool.folder)
    assert (again.trained(), again.stored(), again.ref) == (update, {1}, RoundRef("run-1", 3))
    monkeypatch.setattr(spools, "boot_id", lambda: "the machine was started again")
    assert again.trained() == (update if encoded else None), "only the manifest could tell what is damaged"
    assert again.stored() == set(), "it may be the record of another round"
    monkeypatch.undo()
    spool.delta.write_bytes(bytes(8))
    assert again.trained() is None, "it is cut off"
    spool.delta.unlink()
    assert again.trained() is None
    spool.delta.write_bytes(bytes(12))
    assert again.trained() == update
    again.begin(4)
    for each in (again, Spool(spool.folder)):
        assert each.trained() is None


async def test_the_index_follows_what_is_opened_and_forgotten(tmp_path: Path) -> None:
    for stray in ("stray", "run.x.0"):
        (tmp_path / stray).mkdir()
    spool, update = _spooled(tmp_path)
    spools, third = Spools(tmp_path), RoundRef("run-1", 3)
    assert (spools.refs(), spools.runs()) == ({third}, {"run-1"})
    known = spools.known(_news(3), "0")
    assert known is not None
    assert known.update == update
    assert spools.open(_news(3), "0") is known
    assert spools.known(_news(4), "0") is None
    other = spools.open(_news(1, "run-2"), "0")
    assert spools.refs() == {third, RoundRef("run-2", 1)}
    await spools.forget("run-1")
    await spools.forget("run-1")
    assert not spool.folder.exists()
    assert spools.refs() == {RoundRef("run-2", 1)}
    assert spools.of(RoundRef("run-2", 1)) == [other]


@pytest.mark.parametrize("again", [False, True], ids=["same process", "after a restart"])
def test_the_next_round_uses_the_files_again_and_finds_nothing_in_them(tmp_path: Path, again: bool) -> None:
    """To make and delete files costs more than all else in a small round."""
    spool, _ = _spooled(tmp_path)
    spool.note_stored(1)
    spool.residual.write_bytes(b"old")
    spool.lost.write_bytes(b"new")
    files = {spool.lost: spool.residual, spool.residual: spool.losing}
    files |= {path: path for path in (spool.delta, spool.folder / "update")}
    before = {to: path.stat().st_ino for path, to in files.items()}
    spools = Spools(tmp_path)
    (settled,) = spools.of(RoundRef("run-1", 3))
    settled.settle(True)
    assert spools.refs() == set()
    if again:
        spools = Spools(tmp_path)
        assert spools.refs() == set()
    fourth = spools.open(_news(4), "0")
    assert (fourth.update, fourth.trained(), fourth.stored(), fourth.sent) == (None, None, set(), False)
    assert {path: path.stat().st_ino for path in before} == before


@pytest.mark.parametrize("sent", [False, True])
def test_another_run_of_the_same_name_finds_nothing(tmp_path: Path, sent: bool) -> None:
    """A hub that was set up anew counts its runs from 1 again."""
    spool, _ = _spooled(tmp_path)
    spool.residual.write_bytes(b"of the old run")
    if sent:
        spool.mark_sent()
    spools = Spools(tmp_path)
    assert spools.known(_news(3, run_at=NOW + 1), "0") is None
    fresh = spools.open(_news(3, run_at=NOW + 1), "0")
    assert (fresh.update, fresh.sent, fresh.residual.exists()) == (None, False, False)
    assert Spools(tmp_path).open(_news(3, run_at=NOW + 1), "0").run_at == NOW + 1


def test_what_a_kill_left_of_a_round_is_nothing_of_the_next(tmp_path: Path) -> None:
    """Records go first, then the rest: a kill in between leaves files without a round."""
    spool, _ = _spooled(tmp_path)
    spool.note_stored(0)
    spool.lost.write_bytes(b"lost")
    with (spool.folder / "update").open("r+b") as file:
        file.write(b"\0")
    found = Spool(spool.folder)
    assert (found.ref, found.stored(), found.lost.exists()) == (None, set(), False)


def test_what_is_acknowledged_is_known_after_a_restart(tmp_path: Path) -> None:
    spool, _ = _spooled(tmp_path)
    assert _unsent(spool) == [0, 1, 2]
    spool.note_stored(2)
    spool.note_stored(0)
    again = Spool(spool.folder)
    assert _unsent(again) == [1]
    again.note_stored(1)
    again.note_stored(1)
    assert _unsent(Spool(spool.folder)) == []


@given(st.lists(st.integers(0, 19), max_size=30))
def test_acknowledgements_may_come_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    spool, _ = _spooled(tmp_path_factory.mktemp("spool"), 20)
    for index in order:
        spool.note_stored(index)
    assert _unsent(Spool(spool.folder)) == [i for i in range(20) if i not in set(order)]


@pytest.mark.parametrize("record", [b"", b"\x01", b"\x01\x00", b"\x00\x00\x00", b"\x01\xff\x02"])
def test_a_lost_or_torn_record_of_acknowledgements_costs_a_repeat(tmp_path: Path, record: bytes) -> None:
    spool, _ = _spooled(tmp_path)
    (spool.folder / "stored").write_bytes(record)
    assert _unsent(spool) == [i for i in range(3) if record[i : i + 1] != b"\x01"]


def test_a_record_that_cannot_be_written_costs_a_repeat(tmp_path: Path) -> None:
    """A disk may be full by now: an update that can be sent is sent."""
    spool, update = _spooled(tmp_path)
    (spool.folder / "stored").symlink_to(tmp_path / "missing" / "stored")
    spool.note_stored(1)
    (spool.folder / "update").rename(tmp_path / "kept")
    spool.mark_sent()
    assert spool.sent
    (tmp_path / "kept").rename(spool.folder / "update")
    again = Spool(spool.folder)
    assert (again.update, again.sent, _unsent(again)) == (update, False, [0, 1, 2])


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_a_torn_update_is_no_update(tmp_path: Path, keep: int) -> None:
    spool, _ = _spooled(tmp_path)
    path = spool.folder / "update"
    path.write_bytes(path.read_bytes()[:keep])
    assert Spool(spool.folder).update is None


@pytest.mark.parametrize("at", [0, 1, 4, 9, 200])
def test_a_damaged_update_is_no_update(tmp_path: Path, at: int) -> None:
    spool, _ = _spooled(tmp_path)
    path = spool.folder / "update"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert Spool(spool.folder).update is None


@pytest.mark.parametrize("data", [b"\0" * 100, b"null", b"{}", b'{"table":[]}', b"\xff\xfe"])
def test_what_is_no_update_is_ignored(tmp_path: Path, data: bytes) -> None:
    spool, _ = _spooled(tmp_path)
    (spool.folder / "update").write_bytes(data)
    assert Spool(spool.folder).update is None
    record = Record(spool.folder / "update", SpooledRun)  # whole, and something else
    record.write(SpooledRun(run_at=NOW), mark=1)
    assert Spool(spool.folder).update is None


def test_a_shorter_update_over_a_longer_one_is_whole(tmp_path: Path) -> None:
    spool, _ = _spooled(tmp_path)
    spool.save(_trained(4))
    assert Spool(spool.folder).update == _trained(4)
    assert sorted(path.name for path in spool.folder.iterdir()) == ["delta.f32", "run", "update"]


def test_removing_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    spool, _ = _spooled(tmp_path)
    spool.note_stored(0)
    spool.remove()
    assert not spool.folder.exists()
    spool.remove()
    assert list(tmp_path.iterdir()) == []
    fresh = Spool(spool.folder)
    assert fresh.update is None

"""An update on disk, until its round has ended: a restart goes on with the attempt that it had.

A folder per run and node holds one round's files: `delta.f32` (what was trained), `update` (what was said
of it, and what the manifest will say, once all is encoded) and `stored` (a byte for each acknowledged
chunk); where the codec wants error feedback also `lost` (what the encoding lost). Chunks are not kept: to
encode them again gives the same bytes. The next round writes over the files, and the folder goes with its
run (`run`).

Nothing here is synced to the disk: a kill of the worker loses no write. What a power cut damages is
noticed by the digests in the manifest, and made anew; without a manifest nobody could tell, and it is
trained again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from fedbus_schemas.base import Metrics, RoundNumber, Seconds, Token, Wire
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import Announcement
from fedbus_schemas.update import TensorSpec, UpdateManifest

from fedbus_worker.record import Record

# Marks of `update`. An update that is offered may have reached the broker.
_KEPT, _OFFERED, _SENT = 1, 2, 3


class SpooledRun(Wire):
    """What `run` keeps: which run of this name the folder is of."""

    run_at: Seconds


class SpooledUpdate(Wire):
    """What `update` keeps: with `delta.f32` it is encoded again, as the same bytes."""

    round: RoundNumber
    attempt: Token
    table: list[TensorSpec]
    num_examples: int
    metrics: Metrics
    boot: str | None
    manifest: UpdateManifest | None = None  # once all is encoded


class Spool:
    """The folder of a run and node. One process owns it, and reads it once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run, _, self.node = folder.name.partition(".")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = Record(folder / "run", SpooledRun)
        run = self._run.read()
        self.run_at = run[0].run_at if run else None
        self._update = Record(folder / "update", SpooledUpdate)
        update = self._update.read()
        self.update: SpooledUpdate | None = update[0] if update else None
        self._mark = update[1] if update else 0
        self.round = self.update.round if self.update else None
        self._empty = False
        if self.update is None:
            self._clear()  # what a kill left of an earlier round

    @property
    def ref(self) -> RoundRef | None:
        """The round that this is of; None between two."""
        return None if self.round is None else RoundRef(self.run, self.round)

    @property
    def sent(self) -> bool:
        """Whether the manifest is acknowledged."""
        return self._mark == _SENT

    @property
    def delta(self) -> Path:
        """The trainer's output: a flat float32 vector."""
        return self.folder / "delta.f32"

    @property
    def lost(self) -> Path:
        """What the encoding lost; see `fedbus_worker.feedback`."""
        return self.folder / "lost"

    @property
    def residual(self) -> Path:
        """What earlier updates of the run lost."""
        return self.folder / "residual"

    @property
    def losing(self) -> Path:
        """The same while it is being encoded; before that, a file of an earlier round to write over."""
        return self.folder / "lost.part"

    @property
    def offered(self) -> bool:
        """Whether a manifest that has `lost` beside it may have reached the broker."""
        return self._mark in (_OFFERED, _SENT)

    def offer(self) -> None:
        """The manifest is about to be sent: it matters where something was lost."""
        if self.lost.exists():
            self._set(_OFFERED)

    def mark_sent(self) -> None:
        """The manifest is acknowledged: nothing is left to do but to wait for the round's end.

        Where that cannot be written, a restart sends the manifest again, and hears that it is there.
        """
        with suppress(OSError):
            self._set(_SENT)
        self._mark = _SENT

    def _set(self, mark: int) -> None:
        self._update.mark(mark)
        self._mark = mark

    def save(self, update: SpooledUpdate) -> None:
        """Write `update`: from now on a restart need not train again.

        Raises:
            OSError: the disk is full.
        """
        self._empty = False
        self._update.write(update, _KEPT)
        self.update, self._mark, self.round = update, _KEPT, update.round

    def trained(self) -> SpooledUpdate | None:
        """What was trained, if `delta` may still be what the trainer wrote.

        It is not synced. After a power cut only a manifest could tell, by the digests of its chunks.
        """
        found = self.update
        if found is None:
            return None
        if found.manifest is None and (found.boot is None or found.boot != boot_id()):
            return None
        size = 4 * sum(tensor.size for tensor in found.table)
        try:
            return found if self.delta.stat().st_size == size else None
        except FileNotFoundError:
            return None

    def settle(self, counted: bool | None) -> None:
        """The round is over: what its update lost counts if the update did.

        Args:
            counted: None where it is not known any more. An update that was offered may have counted,
                and nothing must be sent twice.
        """
        if (self.offered if counted is None else counted) and self.lost.exists():
            if self.update is not None and self.update.boot == boot_id():
                # The old file is written over: to write into new ones takes twice the time. A kill between
                # the two leaves `lost` where it was, and all this is done again.
                _rename(self.residual, self.losing)
                self.lost.replace(self.residual)
            else:
                # A power cut may have left the files of two rounds side by side: then nothing was lost.
                self.residual.unlink(missing_ok=True)
        self._clear()

    def belong(self, run_at: float) -> None:
        """Note of which run this folder is."""
        self._run.write(SpooledRun(run_at=run_at), _KEPT)
        self.run_at = run_at

    def begin(self, number: int) -> None:
        """A round, or another attempt at it, begins."""
        self._clear()
        self.round = number

    def _clear(self) -> None:
        self.round = None
        if self._empty:
            return
        self._update.clear()
        self.update, self._mark = None, 0
        (self.folder / "stored").unlink(missing_ok=True)
        _rename(self.lost, self.losing)
        self._empty = True

    def stored(self) -> set[int]:
        """Chunks with an acknowledgement on record; after a power cut it might be another round's."""
        if self.update is not None and self.update.boot != boot_id():
            return set()
        try:
            record = (self.folder / "stored").read_bytes()
        except FileNotFoundError:
            return set()
        return {index for index, mark in enumerate(record) if mark == 1}

    def note_stored(self, index: int) -> None:
        """Record an acknowledgement. Losing it costs a repeat: nothing is synced, a full disk is no error."""
        with suppress(OSError):
            descriptor = os.open(self.folder / "stored", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, b"\x01", index)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Spools:
    """The folders of all runs that this worker takes part in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in sorted(folder.iterdir()) if _is_seat(path.name)]
        self._open = {name: Spool(folder / name) for name in names}

    def open(self, news: Announcement, node: str) -> Spool:
        """The folder for a round, made where there is none; what others left there is forgotten."""
        name = f"{news.run}.{node}"
        spool = self._open.get(name)
        if spool is None or spool.run_at != news.run_at:
            if spool is not None:
                spool.remove()
            spool = self._open[name] = Spool(self._folder / name)
            spool.belong(news.run_at)
        if spool.round != news.round:
            spool.begin(news.round)
        return spool

    def known(self, news: Announcement, node: str) -> Spool | None:
        """The folder of a round, if it holds anything of it."""
        found = self.of(RoundRef(news.run, news.round))
        return next((s for s in found if s.node == node and s.run_at == news.run_at), None)

    def of(self, ref: RoundRef) -> list[Spool]:
        """The folders that hold anything of a round."""
        return [spool for spool in self._open.values() if spool.ref == ref]

    def refs(self) -> set[RoundRef]:
        """Rounds of which anything is held."""
        return {spool.ref for spool in self._open.values() if spool.ref}

    def runs(self) -> set[str]:
        """Runs that have a folder."""
        return {spool.run for spool in self._open.values()}

    async def forget(self, run: str) -> None:
        """Delete the files of a run."""
        for spool in [spool for spool in self._open.values() if spool.run == run]:
            del self._open[spool.folder.name]
            await asyncio.to_thread(spool.remove)


@cache
def boot_id() -> str | None:
    """Names the time since this machine started; None where the system does not say (macOS)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _rename(path: Path, to: Path) -> None:
    with suppress(FileNotFoundError):
        path.replace(to)


def _is_seat(name: str) -> bool:
    """Whether a name is that of a run and a node; a stray file has none."""
    run, _, node = name.partition(".")
    return bool(run and node) and "." not in node

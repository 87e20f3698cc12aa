"""An encoded update on disk, until its round has ended: a restart resumes at the chunk it had.

A folder per assignment holds `delta.f32` and `trained.json` (until all is encoded), `chunks`
(all chunks, back to back), `update.json` (what the manifest will say; written last, so it means
"encoded"), `stored` (a byte for each acknowledged chunk) and `sent` (the manifest is
acknowledged); where the codec wants error feedback also `lost` (what the encoding lost) and
`offered` (the manifest was about to be sent: it may count). The bytes that are sent again are
the same bytes.

Nothing here is synced to the disk: a kill of the worker loses no write, and what a power
cut damages is noticed by `intact` and made anew.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fedbus.bus.threads import apart
from fedbus.codec.chunk import chunk_digest
from fedbus_schemas.base import Metrics, Token, Wire
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.update import TensorSpec, UpdateManifest
from pydantic import ValidationError

W = TypeVar("W", bound=Wire)


class SpooledUpdate(Wire):
    """What `update.json` keeps."""

    manifest: UpdateManifest
    sizes: list[int]


class SpooledTraining(Wire):
    """What `trained.json` keeps: with `delta.f32` it can be encoded again, as the same bytes."""

    attempt: Token
    table: list[TensorSpec]
    num_examples: int
    metrics: Metrics
    boot: str | None


class Spool:
    """One assignment's folder. One process owns it, and reads `update.json` once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.update = self._load("update.json", SpooledUpdate)
        self.sent = (folder / "sent").exists()

    @property
    def delta(self) -> Path:
        """The trainer's output: a flat float32 vector."""
        return self.folder / "delta.f32"

    @property
    def chunks(self) -> Path:
        """The encoded chunks, back to back."""
        return self.folder / "chunks"

    @property
    def lost(self) -> Path:
        """What the encoding lost; see `fedbus_worker.feedback`."""
        return self.folder / "lost"

    @property
    def losing(self) -> Path:
        """The same while it is being encoded."""
        return self.folder / "lost.part"

    @property
    def offered(self) -> bool:
        """Whether a manifest that has `lost` beside it may have reached the broker."""
        return (self.folder / "offered").exists()

    def offer(self) -> None:
        """The manifest is about to be sent."""
        if self.lost.exists():
            (self.folder / "offered").touch()

    def save(self, update: SpooledUpdate) -> None:
        """Write `update.json`, whole or not at all."""
        self._write("update.json", update)
        self.update = update

    def save_training(self, trained: SpooledTraining) -> None:
        """Write `trained.json`: from now on a restart need not train again."""
        self._write("trained.json", trained)

    def training(self) -> SpooledTraining | None:
        """What was trained and not encoded to its end, if `delta` is still what the trainer wrote.

        It is not synced: after a power cut nobody could tell, so it counts until the machine starts again.
        """
        found = self._load("trained.json", SpooledTraining)
        if found is None or found.boot is None or found.boot != boot_id():
            return None
        size = 4 * sum(tensor.size for tensor in found.table)
        try:
            return found if self.delta.stat().st_size == size else None
        except FileNotFoundError:
            return None

    def _load(self, name: str, kind: type[W]) -> W | None:
        try:
            return kind.model_validate_json((self.folder / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write(self, name: str, value: Wire) -> None:
        temporary = (self.folder / name).with_suffix(".new")
        temporary.write_text(value.model_dump_json())
        temporary.replace(self.folder / name)

    def mark_sent(self) -> None:
        """The manifest is acknowledged: nothing is left to do but to wait for the round's end.

        Where the disk is full, a restart sends the manifest again, and hears that it is there.
        """
        self.sent = True
        with suppress(OSError):
            (self.folder / "sent").touch()

    def intact(self, update: SpooledUpdate) -> bool:
        """Whether every chunk on disk is the one that the manifest lists."""
        try:
            chunks = (self.read(update.sizes, i) for i in range(len(update.sizes)))
            return [chunk_digest(chunk) for chunk in chunks] == update.manifest.chunks
        except OSError:
            return False

    def restart(self) -> None:
        """Forget what was stored of an earlier attempt: another encoding follows."""
        for name in ("sent", "stored", "update.json", "trained.json", "lost", "lost.part", "offered"):
            (self.folder / name).unlink(missing_ok=True)
        self.update, self.sent = None, False

    def stored(self) -> set[int]:
        """Chunks with an acknowledgement on record."""
        try:
            record = (self.folder / "stored").read_bytes()
        except FileNotFoundError:
            return set()
        return {index for index, mark in enumerate(record) if mark == 1}

    def note_stored(self, index: int) -> None:
        """Record an acknowledgement. Losing it costs a repeat: nothing is synced, a full disk is no error."""
        path = self.folder / "stored"
        with suppress(OSError):
            path.touch()
            with path.open("r+b") as file:
                file.seek(index)
                file.write(b"\x01")

    def read(self, sizes: list[int], index: int) -> bytes:
        """One chunk, by the sizes of those before it and its own."""
        with self.chunks.open("rb", buffering=0) as file:
            file.seek(sum(sizes[:index]))
            return file.read(sizes[index])

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.update, self.sent = None, False


class Spools:
    """The folders of all assignments that have files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._open = {path.name: Spool(path) for path in sorted(folder.iterdir()) if _ref(path.name)}

    def open(self, key: str) -> Spool:
        """The folder of an assignment, made where there is none."""
        if key not in self._open:
            self._open[key] = Spool(self._folder / key)
        return self._open[key]

    def known(self, key: str) -> Spool | None:
        """The folder of an assignment, if there is one."""
        return self._open.get(key)

    def refs(self) -> dict[str, RoundRef]:
        """The rounds of all assignments, by key."""
        return {key: ref for key in self._open if (ref := _ref(key))}

    async def forget(self, key: str) -> None:
        """Delete an assignment's files."""
        if spool := self._open.pop(key, None):
            await apart(spool.update.manifest.size_bytes if spool.update else 0, spool.remove)


def boot_id() -> str | None:
    """Names the time since this machine started; None where the system does not say (macOS)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _ref(name: str) -> RoundRef | None:
    """The round of an assignment's key; a stray file has none."""
    run, _, rest = name.partition(".")
    number, _, node = rest.partition(".")
    return RoundRef(run, int(number)) if number.isascii() and number.isdigit() and node else None

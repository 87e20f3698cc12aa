"""An encoded update on disk, until its round has ended: a restart resumes at the chunk it had.

A folder per assignment holds `chunks` (all chunks, back to back), `update.json` (what the
manifest will say; written last, so it means "encoded") and `stored` (a byte for each
acknowledged chunk). The bytes that are sent again are the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from fedbus_schemas.base import Wire
from fedbus_schemas.update import UpdateManifest
from pydantic import ValidationError


class SpooledUpdate(Wire):
    """What `update.json` keeps."""

    manifest: UpdateManifest
    sizes: list[int]
    sent: bool = False


class Spool:
    """One assignment's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def delta(self) -> Path:
        """The trainer's output: a flat float32 vector."""
        return self.folder / "delta.f32"

    @property
    def chunks(self) -> Path:
        """The encoded chunks, back to back."""
        return self.folder / "chunks"

    def load(self) -> SpooledUpdate | None:
        """The encoded update, if encoding had finished."""
        try:
            return SpooledUpdate.model_validate_json((self.folder / "update.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, update: SpooledUpdate) -> None:
        """Write `update.json`, whole or not at all.

        Nothing here is synced to the disk: a kill of the worker loses no write, and what a power
        cut damages is noticed by `intact` and made anew.
        """
        path = self.folder / "update.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(update.model_dump_json())
        temporary.replace(path)

    def intact(self, update: SpooledUpdate) -> bool:
        """Whether every chunk on disk is the one that the manifest lists."""
        try:
            chunks = (self.read(update, i) for i in range(len(update.sizes)))
            return [hashlib.sha256(chunk).hexdigest() for chunk in chunks] == update.manifest.chunks
        except OSError:
            return False

    def restart(self) -> None:
        """Forget what was stored of an earlier attempt: another encoding follows."""
        (self.folder / "stored").unlink(missing_ok=True)

    def unsent(self, update: SpooledUpdate) -> list[int]:
        """Chunks without an acknowledgement on record."""
        try:
            stored = (self.folder / "stored").read_bytes()
        except FileNotFoundError:
            stored = b""
        return [i for i in range(len(update.sizes)) if stored[i : i + 1] != b"\x01"]

    def note_stored(self, index: int) -> None:
        """Record an acknowledgement. Losing the record costs one repeat, so it is not synced."""
        path = self.folder / "stored"
        path.touch()
        with path.open("r+b") as file:
            file.seek(index)
            file.write(b"\x01")

    def read(self, update: SpooledUpdate, index: int) -> bytes:
        """One chunk."""
        with self.chunks.open("rb") as file:
            file.seek(sum(update.sizes[:index]))
            return file.read(update.sizes[index])

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

"""Base models as files that agent and trainer share: flat float32, named by digest, downloaded once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fedbus.bus import Bus
from fedbus.bus.models import read_manifest, read_spans
from fedbus.bus.threads import apart
from fedbus.codec import Vector
from fedbus.codec.chunk import chunk_digest
from fedbus.codec.framing import Framing
from fedbus.codec.grid import Grid, Span
from fedbus_schemas.update import ModelManifest, TensorSpec

log = logging.getLogger(__name__)

KEPT = 2


class Models:
    """The models that this worker has at hand.

    Files are not synced to the disk: a kill loses no write, and what a power cut may have damaged is
    noticed, since a file of an earlier process is compared with its manifest before it is used.
    """

    def __init__(self, bus: Bus, folder: Path) -> None:
        self._bus = bus
        self._folder = folder
        self._known: dict[str, list[TensorSpec]] = {}  # files that this process wrote or compared
        folder.mkdir(parents=True, exist_ok=True)
        for broken_off in folder.glob("*.part"):
            broken_off.unlink()

    async def get(self, digest: str, progress: Callable[[float], None]) -> tuple[Path, list[TensorSpec]]:
        """A model's file and tensor table.

        Args:
            digest: of its manifest.
            progress: told the share that was downloaded.

        Raises:
            StreamMissing: the broker does not have it.
            DigestMismatch, ChunkRefused: what it has is something else.
        """
        path = self._folder / f"{digest}.f32"
        if digest not in self._known:
            manifest = await read_manifest(self._bus, digest)
            if not (path.exists() and await asyncio.to_thread(_holds, path, manifest)):
                await self._download(manifest, path, progress)
            self._known[digest] = manifest.table
        os.utime(path)
        self._forget_old()
        return path, self._known[digest]

    async def _download(self, manifest: ModelManifest, path: Path, progress: Callable[[float], None]) -> None:
        grid = Grid.of(manifest.table)
        part = path.with_suffix(".part")
        scratch = np.empty(max(span.count for span in grid.spans), np.float32)
        with part.open("wb") as file:
            async for span, values in read_spans(self._bus, manifest, lambda span: scratch[: span.count]):
                await apart(values.nbytes, file.write, values.data)
                progress(span.end / grid.size)
        part.replace(path)

    def _forget_old(self) -> None:
        kept = sorted(self._folder.glob("*.f32"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink()
            self._known.pop(old.stem, None)


def _holds(path: Path, manifest: ModelManifest) -> bool:
    """Whether a file holds the model that the manifest lists."""
    framing, grid = Framing(manifest.codec), Grid.of(manifest.table)
    found = [chunk_digest(framing.encode(span, values)) for span, values in read_vector(path, grid)]
    if found != manifest.chunks:
        log.warning("a stored model is damaged, and downloaded again", extra={"action": "download"})
        return False
    return True


def read_vector(path: Path, grid: Grid) -> Iterator[tuple[Span, Vector]]:
    """The spans of a flat file, one after the other in the same memory.

    Read, not mapped: a page that is mapped costs more to touch than to copy, and counts as ours.
    """
    scratch = np.empty(max(span.count for span in grid.spans), np.float32)
    with path.open("rb", buffering=0) as file:
        for span in grid.spans:
            values = scratch[: span.count]
            got = file.readinto(values.data.cast("B"))
            if got != values.nbytes:
                values[(got or 0) // 4 :] = np.nan  # a file that is too short holds no finite model
            yield span, values

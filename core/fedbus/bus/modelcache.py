"""Models as files that the processes of a host share, named by digest, downloaded once.

A file is never synced on a round's way: a kill loses no write, and only a power cut can damage one. So a
file is trusted while a living process vouches for it, by a shared lock. Whoever finds it without one
compares it with its manifest first, chunk by chunk, and downloads what does not match; a broken-off
download goes on in the same way, from the chunks that it had. Where a process that downloads gets no
further, as it was stopped, each of the others makes a file of its own.

A model that travels as a difference is made from its parent's file, where this host has it; else from the
nearest older one, or a whole model and all differences since. Whether that file is right is seen by what
comes out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus.base.clock import random_token
from fedbus.bus.connection import Bus
from fedbus.bus.download import Progress, download
from fedbus.bus.hostlock import POLL_S, HostLock, Patience
from fedbus.bus.modelfile import write_body
from fedbus.bus.models import read_manifest
from fedbus.bus.ownfiles import OwnFiles
from fedbus.codec.grid import Grid

log = logging.getLogger(__name__)

LIMIT_BYTES = 2_000_000_000
MOST_FILES = 16  # and up to three more for each process
STUCK_S = 60.0  # without a chunk, that a download by another process is waited for
TRIES = 50  # to be the one who downloads, where the file is missing and the lock is busy
IN_USE = 2  # models that one process keeps beside those it holds: a round's base, and one to score


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model at hand: flat float32. The file stays while it is held, or until a few others were taken."""

    path: Path
    manifest: ModelManifest  # without its body
    lock: HostLock | None  # None: it is nobody else's

    @property
    def table(self) -> list[TensorSpec]:
        """Its tensors, in wire order."""
        return self.manifest.table


class ModelCache:
    """One process's way to the models of its host.

    Args:
        bus: where models come from.
        folder: shared by one user's processes on a host.
        limit_bytes: files above this go, the longest unused first, unless a process uses them.
    """

    def __init__(self, bus: Bus, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._bus = bus
        self.folder = folder
        self._limit = limit_bytes
        self._held: OrderedDict[str, CachedModel] = OrderedDict()
        self._holds: Counter[str] = Counter()
        self._own = OwnFiles(folder)
        self._make_folder()

    async def get(self, digest: str, progress: Progress = lambda share: None) -> CachedModel:
        """A model's file and table.

        Args:
            digest: of its manifest.
            progress: told the share that is at hand, while it is downloaded.

        Raises:
            StreamMissing: the broker does not have it.
            DigestMismatch, ChunkRefused, RemoteContractError: what it has is something else.
        """
        if digest in self._held and not self._held[digest].path.exists():
            self._let_go(self._held.pop(digest))  # somebody cleaned up
        if digest not in self._held:
            manifest = await read_manifest(self._bus, digest)
            if manifest.body is None:
                self._make_folder()
                self._take(digest, await self._once(digest, manifest, progress))
            else:
                # It came with its manifest: cheaper to write than to look whether another process did.
                path = await self._own_file(manifest)
                whole = manifest.model_copy(update={"body": None})
                self._take(digest, CachedModel(path, whole, None))
        held = self._held[digest]
        self._held.move_to_end(digest)
        if held.lock:
            os.utime(held.path)
        return held

    async def hold(self, digest: str) -> CachedModel:
        """As `get`, and keep it until `release` was called as often."""
        held = await self.get(digest)
        self._holds[digest] += 1
        return held

    def release(self, digest: str) -> None:
        """End a `hold`."""
        self._holds[digest] -= 1
        if not self._holds[digest]:
            del self._holds[digest]

    @contextmanager
    def making(self, table: list[TensorSpec]) -> Iterator[Path]:
        """A file to write a model into, for `add`; what is not added is removed."""
        lock: HostLock | None = None
        if len(Grid.of(table).spans) == 1:
            part = self._own.take()
        else:
            self._make_folder()
            token = random_token()
            part = self.folder / f"{token}.part"
            lock = HostLock.take(self._lock_path(token), alone=True)  # while it lives, nobody needs the room
            assert lock is not None, "the name is random"
        try:
            yield part
        finally:
            if part not in [held.path for held in self._held.values()]:
                self._drop(part)
            if lock:
                lock.remove()

    async def add(self, digest: str, manifest: ModelManifest, part: Path) -> None:
        """Take over a file that this process has just written, and knows to be right."""
        if self._own.has(part):
            self._take(digest, CachedModel(part, manifest, None))
            return
        lock = await self._wait(digest, self._patience(digest))
        path = self._path(digest) if lock else self._own.take()
        self._keep(part, path)
        self._take(digest, CachedModel(path, manifest, lock))

    def close(self) -> None:
        """Let other processes delete what this one used."""
        while self._held:
            self._let_go(self._held.popitem()[1])
        self._own.close()

    async def _own_file(self, manifest: ModelManifest, progress: Progress = lambda share: None) -> Path:
        """A model in a file of this process."""
        path = self._own.take()
        try:
            if manifest.body is not None and not manifest.is_delta:
                write_body(manifest, path)
            else:
                await download(self._bus, manifest, path, self._open, progress)
        except BaseException:
            self._own.give(path)
            raise
        return path

    async def _once(self, digest: str, manifest: ModelManifest, progress: Progress) -> CachedModel:
        """Download for all processes of this host, or for this one where others are in the way."""
        path, patience = self._path(digest), self._patience(digest)
        for _ in range(TRIES):
            if lock := HostLock.take(self._lock_path(digest), alone=True):
                try:
                    part = self._distrust(digest)
                    await download(self._bus, manifest, part, self._open, progress)
                    self._keep(part, path)
                except BaseException:
                    lock.release()
                    raise
                if lock.share():
                    return CachedModel(path, manifest, lock)
            lock = await self._wait(digest, patience)
            if lock is None:
                break
            if path.exists():
                return CachedModel(path, manifest, lock)
            # Whoever downloaded it was killed: one of those who waited goes on.
            lock.release()
            await asyncio.sleep(POLL_S * random.random())
        # Somebody removed it while others use it, or was stopped while downloading it.
        return CachedModel(await self._own_file(manifest, progress), manifest, None)

    async def _wait(self, digest: str, patience: Patience) -> HostLock | None:
        """A shared lock on a model's file; None where whoever has it alone gets no further."""
        loop = asyncio.get_running_loop()
        lock = await HostLock.wait_shared(
            self._lock_path(digest),
            lambda: patience.is_over(loop.time(), excused=not self._bus.connected),
        )
        if lock is None:
            log.warning("another process has locked model %s and gets no further: not shared", digest[:12])
        return lock

    def _patience(self, digest: str) -> Patience:
        return Patience(self._part(digest), STUCK_S)

    def _take(self, digest: str, model: CachedModel) -> None:
        if before := self._held.pop(digest, None):
            self._let_go(before)
        self._held[digest] = model
        passing = [each for each in self._held if each not in self._holds]
        for each in passing[:-IN_USE]:
            self._let_go(self._held.pop(each))
        if model.lock:
            self._make_room()

    def _let_go(self, model: CachedModel) -> None:
        if model.lock:
            model.lock.release()
        else:
            self._own.give(model.path)

    def _drop(self, part: Path) -> None:
        if self._own.has(part):
            self._own.give(part)
        else:
            part.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Delete what is longest unused, and used by nobody, until the rest is within the limits."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process makes room, too
                if path.suffix in (".f32", ".part"):
                    stat = path.stat()
                    files.append((stat.st_mtime, stat.st_size, path))
        left, size = len(files), sum(size for _, size, _ in files)
        for _, bytes_, path in sorted(files):
            if left <= MOST_FILES and size <= self._limit:
                return
            lock = HostLock.take(self._lock_path(path.name.partition(".")[0]), alone=True)
            if lock is not None:
                path.unlink(missing_ok=True)
                lock.remove()
                left, size = left - 1, size - bytes_

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _distrust(self, digest: str) -> Path:
        """Where to download; what lies there though nobody vouches for it is compared first."""
        part = self._part(digest)
        with suppress(FileNotFoundError):
            self._path(digest).replace(part)
        return part

    def _keep(self, part: Path, path: Path) -> None:
        part.replace(path)

    def _open(self, digest: str) -> FileIO | None:
        path = self._held[digest].path if digest in self._held else self._path(digest)
        try:
            return FileIO(path)
        except FileNotFoundError:
            return None

    def _part(self, digest: str) -> Path:
        return self.folder / f"{digest}.part"

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.f32"

    def _lock_path(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"


@contextmanager
def model_cache(bus: Bus, folder: Path | None) -> Iterator[ModelCache]:
    """The cache of a service.

    Args:
        bus: the connection.
        folder: the stack's, where its services share their models. Without one, or where it may only be
            read, as in a container, the cache is temporary.
    """
    with ExitStack() as stack:
        if folder is None or not os.access(folder, os.W_OK):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedbus-models-")))
        cache = ModelCache(bus, folder / "models")
        stack.callback(cache.close)
        yield cache

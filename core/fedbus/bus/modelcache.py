"""Models as files that the processes of a host share, named by digest, downloaded once.

A file is never synced on a round's way: a kill loses no write, and only a power cut can damage one. So a
file is trusted while a living process vouches for it, by a shared lock. Whoever finds it without one
compares it with its manifest first, chunk by chunk, and downloads what does not match; a broken-off
download goes on in the same way, from the chunks that it had. Where a process that downloads gets no
further, as it was stopped, each of the others makes a file of its own.
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
from pathlib import Path

from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus.base.clock import random_token
from fedbus.bus.connection import Bus
from fedbus.bus.hostlock import POLL_S, HostLock, Patience
from fedbus.bus.modelfile import Progress, download
from fedbus.bus.models import read_manifest

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
    table: list[TensorSpec]
    lock: HostLock


class ModelCache:
    """One process's way to the models of its host.

    Args:
        bus: where models come from.
        folder: shared by one user's processes on a host.
        limit_bytes: files above this go, the longest unused first, unless a process uses them.
    """

    def __init__(self, bus: Bus, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._bus = bus
        self._folder = folder
        self._limit = limit_bytes
        self._held: OrderedDict[str, CachedModel] = OrderedDict()
        self._holds: Counter[str] = Counter()
        self._added = 0
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
            self._held.pop(digest).lock.release()  # somebody cleaned up
        if digest not in self._held:
            manifest = await read_manifest(self._bus, digest)
            self._make_folder()
            patience = self._patience(digest)
            # What came with its manifest is cheaper to write than to look whether another process did.
            make = self._once if manifest.body is None else self._at_once
            self._hold(digest, await make(digest, manifest, progress, patience))
        held = self._held[digest]
        self._held.move_to_end(digest)
        os.utime(held.path)
        return held

    async def hold(self, digest: str) -> CachedModel:
        """As `get`, and keep it until `let_go` was called as often."""
        held = await self.get(digest)
        self._holds[digest] += 1
        return held

    def let_go(self, digest: str) -> None:
        """End a `hold`."""
        self._holds[digest] -= 1
        if not self._holds[digest]:
            del self._holds[digest]

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A file to write a model into, for `add`; what is not added is removed."""
        self._make_folder()
        part = self._folder / f"{name}.{random_token()}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    async def add(self, digest: str, table: list[TensorSpec], part: Path) -> None:
        """Take over a file that this process has just written, and knows to be right."""
        name, lock = await self._lock(digest, self._patience(digest))
        self._keep(part, name)
        self._hold(digest, CachedModel(self._path(name), table, lock))

    def close(self) -> None:
        """Let other processes delete what this one used."""
        while self._held:
            self._held.popitem()[1].lock.release()

    async def _at_once(
        self, digest: str, manifest: ModelManifest, progress: Progress, patience: Patience
    ) -> CachedModel:
        """Make the file without regard to other processes."""
        name, lock = await self._lock(digest, patience)
        # Not by process id: two containers that share the folder may have the same.
        part = self._folder / f"{name}.{random_token()}.part"
        try:
            await download(self._bus, manifest, part, progress)
            self._keep(part, name)
        except BaseException:
            part.unlink(missing_ok=True)
            lock.release()
            raise
        return CachedModel(self._path(name), manifest.table, lock)

    async def _once(
        self, digest: str, manifest: ModelManifest, progress: Progress, patience: Patience
    ) -> CachedModel:
        """Download for all processes of this host."""
        for _ in range(TRIES):
            if lock := HostLock.take(self._lock_path(digest), alone=True):
                try:
                    part = self._distrust(digest)
                    await download(self._bus, manifest, part, progress)
                    self._keep(part, digest)
                except BaseException:
                    lock.release()
                    raise
                if lock.share():
                    return CachedModel(self._path(digest), manifest.table, lock)
            lock = await self._wait(digest, patience)
            if lock is None:
                break
            if self._path(digest).exists():
                return CachedModel(self._path(digest), manifest.table, lock)
            # Whoever downloaded it was killed: one of those who waited goes on.
            lock.release()
            await asyncio.sleep(POLL_S * random.random())
        # Somebody removed it while it is used, or was stopped while downloading it.
        return await self._at_once(digest, manifest, progress, patience)

    async def _lock(self, digest: str, patience: Patience) -> tuple[str, HostLock]:
        """The name of a file to make, and a shared lock on it; a name of our own where patience is over."""
        if lock := await self._wait(digest, patience):
            return digest, lock
        log.warning("another process has locked model %s and gets no further: not shared", digest[:12])
        name = f"{digest}-{random_token()}"
        lock = HostLock.take(self._lock_path(name), alone=False)
        assert lock is not None, "nobody else knows its name"
        return name, lock

    async def _wait(self, digest: str, patience: Patience) -> HostLock | None:
        loop = asyncio.get_running_loop()
        return await HostLock.wait_shared(
            self._lock_path(digest),
            lambda: patience.is_over(loop.time(), excused=not self._bus.connected),
        )

    def _patience(self, digest: str) -> Patience:
        return Patience(self._part(digest), STUCK_S)

    def _hold(self, digest: str, model: CachedModel) -> None:
        if before := self._held.pop(digest, None):
            before.lock.release()
        self._held[digest] = model
        passing = [each for each in self._held if each not in self._holds]
        for each in passing[:-IN_USE]:
            self._held.pop(each).lock.release()
        self._added += 1
        # Small ones need room only now and then: to look costs more than they do.
        if self._added % 4 == 1 or 4 * sum(tensor.size for tensor in model.table) > self._limit // MOST_FILES:
            self._make_room()

    def _make_room(self) -> None:
        """Delete what is longest unused, and used by nobody, until the rest is within the limits."""
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
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
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _distrust(self, digest: str) -> Path:
        """Where to download; what lies there though nobody vouches for it is compared first."""
        part = self._part(digest)
        with suppress(FileNotFoundError):
            self._path(digest).replace(part)
        return part

    def _part(self, digest: str) -> Path:
        return self._folder / f"{digest}.part"

    def _keep(self, part: Path, name: str) -> None:
        part.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.f32"

    def _lock_path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"


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

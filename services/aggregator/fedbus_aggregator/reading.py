"""Reading one update off the bus: every chunk once, checked while it is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from fedbus.base.errors import CodecError, StreamMissing, describe
from fedbus.bus import Bus
from fedbus.bus.modelfile import Scratch
from fedbus.bus.store import get, get_chunks
from fedbus.bus.threads import Call, in_order
from fedbus.codec import Vector
from fedbus.codec.framing import Framing, framing_of
from fedbus.codec.grid import Grid, Span
from fedbus.rounds.close import Attempt
from fedbus.rounds.collecting import Refusal, judge_attempt, judge_manifest
from fedbus.rounds.fold import Round
from fedbus_schemas import subjects
from fedbus_schemas.base import Payload
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec, UpdateManifest
from pydantic import ValidationError

# Thousands of updates of this size still add up to a finite float32 sum.
MOST_WEIGHTED = 1e32
# Where a span's values go, for as long as they are looked at.
Place = Callable[[Span], AbstractContextManager[Vector]]
# Share of the free memory that one model may take: its sum and one scratch vector.
MEMORY_SHARE = 0.8


class Corrupted(Exception):
    """An accepted update no longer reads as it did when it was accepted."""

    def __init__(self, update: AcceptedUpdate, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.update = update
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class ReadUpdate:
    """A verified update.

    `values` is None where only the verdict was asked for; `table` has its tensors where it makes
    the first model.
    """

    entry: AcceptedUpdate
    values: Vector | None
    table: list[TensorSpec] | None


class UpdateReader:
    """Reads updates of one run into scratch vectors that are used again and again."""

    def __init__(self, bus: Bus, plan: Plan) -> None:
        self._bus = bus
        self._plan = plan
        self._free: list[Vector] = []

    def release(self, values: Vector | None) -> None:
        """Give a scratch vector back."""
        if values is not None:
            self._free.append(values)

    async def read(
        self,
        ref: RoundRef,
        attempt: Attempt,
        round_: Round,
        table: list[TensorSpec] | None,
        *,
        keep: bool = True,
        again: bool = False,
    ) -> ReadUpdate | Refusal:
        """Read and check one update.

        Args:
            ref: the round.
            attempt: worker, node, attempt.
            round_: the round's fold.
            table: the base model's tensors; None in the round that makes the first.
            keep: the values are wanted too, not only the verdict.
            again: the update was accepted before, so its timing is not judged any more.
        """
        refusal = None if again else judge_attempt(attempt, round_)
        if refusal:
            return refusal
        try:
            message = await get(
                self._bus, subjects.UPDATES, subjects.update(ref.run, ref.number, *attempt, "manifest")
            )
        except StreamMissing as error:
            return Refusal.unreadable(error)
        try:
            manifest = UpdateManifest.unpack(message.data)
        except ValidationError as error:
            return Refusal("bad-manifest", f"manifest refused: {describe(error)}"[:500])
        except ValueError as error:
            return Refusal("bad-manifest", f"manifest refused: {error}"[:500])
        refusal = judge_manifest(manifest, attempt, ref, round_, self._plan, table)
        if refusal:
            return refusal
        grid = Grid.of(manifest.table or table or [])
        values = None
        if keep:
            if refusal := _lacks_memory(grid, len(self._free)):
                return refusal
            values = self._scratch(grid.size)
        try:
            size = await self._decode(ref, manifest, grid, values)
        except BaseException:
            self.release(values)
            raise
        if isinstance(size, Refusal):
            self.release(values)
            return size
        entry = AcceptedUpdate(
            worker=manifest.worker,
            node=manifest.node,
            attempt=manifest.attempt,
            digest=hashlib.sha256(message.data).hexdigest(),
            seq=int(message.headers["Nats-Sequence"]),
            weight=float(manifest.num_examples),
            bytes=len(message.data) + (0 if manifest.body is not None else size),
            metrics=manifest.metrics,
            codec=manifest.codec,
        )
        return ReadUpdate(entry, values, manifest.table)

    async def _decode(
        self, ref: RoundRef, manifest: UpdateManifest, grid: Grid, values: Vector | None
    ) -> int | Refusal:
        """Decode every chunk into its place, or into memory that is used again; returns what they weigh."""
        total = 0
        async with aclosing(in_order(self._decodings(ref, manifest, grid, values))) as decoded:
            async for size in decoded:
                if isinstance(size, Refusal):
                    return size
                total += size
        return total

    async def _decodings(
        self, ref: RoundRef, manifest: UpdateManifest, grid: Grid, values: Vector | None
    ) -> AsyncGenerator[Call[int | Refusal]]:
        """Calls that decode a chunk each."""
        seat, total = (manifest.worker, manifest.node, manifest.attempt), 0
        names = [subjects.update(ref.run, ref.number, *seat, i) for i in range(len(manifest.chunks))]
        framing, place = framing_of(manifest, self._plan.codec.up), _places(grid, values)
        async with aclosing(get_chunks(self._bus, subjects.UPDATES, names, manifest.body)) as chunks:
            for span in grid.spans:
                try:
                    data = await anext(chunks)
                except StreamMissing as error:
                    yield 0, partial(Refusal.unreadable, error, span.index)
                    return
                total += len(data)
                if total > manifest.size_bytes:
                    said = f"chunks weigh more than the {manifest.size_bytes} bytes that the manifest says"
                    yield 0, partial(Refusal, "wrong-size", said, span.index)
                    return
                yield 4 * span.count, partial(_decode, manifest, framing, data, span, place)

    def _scratch(self, size: int) -> Vector:
        self._free = [vector for vector in self._free if vector.size == size]
        return self._free.pop() if self._free else np.empty(size, np.float32)


def _places(grid: Grid, values: Vector | None) -> Place:
    """The parts of a vector, or, where nobody wants the values, memory that is used again."""
    if values is None:
        scratch = Scratch(grid)
        return lambda span: scratch.lent(span.count)
    return lambda span: nullcontext(values[span.offset : span.end])


def _decode(
    manifest: UpdateManifest, framing: Framing, data: Payload, span: Span, place: Place
) -> int | Refusal:
    """Decode a chunk into its place; returns what it weighs."""
    try:
        with place(span) as out:
            peak = framing.decode(data, manifest.chunks[span.index], span, out)
    except CodecError as error:
        return Refusal.unreadable(error, span.index)
    if peak * manifest.num_examples > MOST_WEIGHTED:
        said = f"value times examples reaches {peak * manifest.num_examples:.1e}"
        return Refusal("out-of-range", f"{said}, allowed {MOST_WEIGHTED:.0e}", span.index)
    return len(data)


def _lacks_memory(grid: Grid, free_vectors: int) -> Refusal | None:
    """A member that makes the first model chooses its size: it must fit before anything is allocated."""
    if free_vectors:
        return None  # there is room: it was used before
    available = available_memory()
    if available is None or 2 * grid.bytes <= MEMORY_SHARE * available:
        return None
    needs, has = 2 * grid.bytes // 10**6, available // 10**6
    return Refusal(
        "too-large", f"a model of this size needs {needs} MB, the aggregator's host has {has} MB free"
    )


def available_memory() -> int | None:
    """Bytes that this host can still give to processes; None where the system does not say (macOS)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)

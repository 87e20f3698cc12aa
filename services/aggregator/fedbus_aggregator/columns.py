"""The second read of a round's updates, for strategies that need all values of a coordinate at once.

Chunk after chunk, and of each chunk all updates: memory for one chunk of each, and for their manifests,
which of a model of one chunk hold the chunk, too. The first read has checked every update as a whole, and
nothing was kept of it but the verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from fedbus.base.errors import CodecError, RoundError, StreamMissing
from fedbus.bus import Bus
from fedbus.bus.modelfile import longest
from fedbus.bus.store import get_all
from fedbus.bus.threads import Call, in_order
from fedbus.codec import Vector
from fedbus.codec.framing import Framing, framing_of
from fedbus.codec.grid import Grid, Span
from fedbus.rounds.collecting import Refusal
from fedbus.strategies import Columnwise
from fedbus_schemas import subjects
from fedbus_schemas.base import Payload
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec, UpdateManifest

from fedbus_aggregator.reading import MEMORY_SHARE, Corrupted, available_memory
from fedbus_aggregator.sums import Mean

# A digest of a manifest in memory: 64 characters, what Python adds, and its place in the list.
_LISTED_BYTES = 128


@dataclass(frozen=True, slots=True)
class _Counted:
    """An accepted update, and how to read its chunks."""

    update: AcceptedUpdate
    manifest: UpdateManifest
    framing: Framing

    def subject(self, ref: RoundRef, leaf: int | str) -> str:
        return _subject(ref, self.update, leaf)


class Columns:
    """The counted updates of one round, as they are stored."""

    at_once: ClassVar[int] = 1  # all spans are read into the same memory

    def __init__(self, bus: Bus, strategy: Columnwise, ref: RoundRef, counted: Sequence[_Counted]) -> None:
        self._bus = bus
        self._strategy = strategy
        self._ref = ref
        self._counted = counted

    @classmethod
    async def open(
        cls,
        bus: Bus,
        plan: Plan,
        strategy: Columnwise,
        ref: RoundRef,
        updates: Sequence[AcceptedUpdate],
        table: Sequence[TensorSpec] | None,
    ) -> Columns:
        """Read the manifests again.

        Args:
            bus: the connection.
            plan: of the run.
            strategy: what combines the updates.
            ref: the round.
            updates: those that count.
            table: the model's tensors; None in the round that makes the first, where one update counts.

        Raises:
            Corrupted: one is not what was accepted.
            RoundError: this host has too little memory for them; nothing was read.
        """
        if table is not None:
            _check_memory(needed_bytes(Grid.of(table), updates))
        counted: list[_Counted] = []
        names = (_subject(ref, update, "manifest") for update in updates)
        async with aclosing(get_all(bus, subjects.UPDATES, names)) as manifests:
            for update in updates:
                try:
                    data = await anext(manifests)
                except StreamMissing as error:
                    raise Corrupted(update, Refusal.unreadable(error)) from None
                if hashlib.sha256(data).hexdigest() != update.digest:
                    raise Corrupted(update, Refusal.of_another_manifest())
                manifest = UpdateManifest.unpack(data)
                counted.append(_Counted(update, manifest, framing_of(manifest, plan.codec.up)))
        return cls(bus, strategy, ref, counted)

    @property
    def table(self) -> list[TensorSpec] | None:
        """The tensors of the update that makes the first model."""
        return self._counted[0].manifest.table

    async def means(self, grid: Grid) -> AsyncGenerator[Mean]:
        """The mean update, span by span, each made of the same memory.

        Raises:
            Corrupted: a chunk reads differently now.
        """
        weights = np.array([counted.update.weight for counted in self._counted])
        memory = np.empty((len(self._counted), longest(grid)), np.float32)
        names = (
            counted.subject(self._ref, span.index)
            for span in grid.spans
            for counted in self._counted
            if counted.manifest.body is None
        )
        async with aclosing(get_all(self._bus, subjects.UPDATES, names)) as chunks:
            for span in grid.spans:
                calls = _decodings(self._counted, chunks, span, memory)
                async with aclosing(in_order(calls)) as decoded:
                    async for _ in decoded:
                        pass
                rows = memory[:, : span.count]
                yield partial(self._strategy.combine, span.offset, rows, weights), rows.nbytes


async def _decodings(
    updates: Sequence[_Counted], chunks: AsyncGenerator[Payload], span: Span, memory: Vector
) -> AsyncGenerator[Call[None]]:
    """Calls that put each update's values of a span into a row of its own."""
    for counted, row in zip(updates, memory, strict=True):
        try:
            data = await anext(chunks) if counted.manifest.body is None else counted.manifest.body
        except StreamMissing as error:
            raise Corrupted(counted.update, Refusal.unreadable(error, span.index)) from None
        yield 4 * span.count, partial(_decode, counted, data, span, row[: span.count])


def _decode(counted: _Counted, data: Payload, span: Span, out: Vector) -> None:
    try:
        counted.framing.decode(data, counted.manifest.chunks[span.index], span, out)
    except CodecError as error:
        raise Corrupted(counted.update, Refusal.unreadable(error, span.index)) from None


def _subject(ref: RoundRef, update: AcceptedUpdate, leaf: int | str) -> str:
    return subjects.update(ref.run, ref.number, update.worker, update.node, update.attempt, leaf)


def needed_bytes(grid: Grid, updates: Sequence[AcceptedUpdate]) -> int:
    """What the second read takes in memory, by what the log says: manifests, and one chunk of each update.

    Args:
        grid: of the model.
        updates: those that count.
    """
    # Only a model's single chunk can come inside its manifest.
    bodies = sum(update.bytes for update in updates) if len(grid.spans) == 1 else 0
    return bodies + len(updates) * (_LISTED_BYTES * len(grid.spans) + 4 * longest(grid))


def _check_memory(needs: int) -> None:
    available = available_memory()
    if available is not None and needs > MEMORY_SHARE * available:
        raise RoundError(
            f"the updates' manifests and one chunk of each need {needs // 10**6} MB, "
            f"the aggregator's host has {available // 10**6} MB free",
            hint="choose a smaller cohort, or the strategy fedavg",
        )

"""The next model: the round's base plus the mean update, encoded, published and kept, chunk by chunk.

Where the plan sends differences, what a model lacks of the exact sum is added to the next difference (error
feedback). It is a file of this host only. An aggregator without it publishes a whole model, and what was
still to be sent is lost, as a worker's is that lost its residual.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from io import FileIO

from fedbus.bus import Bus
from fedbus.bus.modelcache import CachedModel, ModelCache
from fedbus.bus.modelfile import open_to_write
from fedbus.bus.models import publish_model
from fedbus.bus.residualfile import Losing, Residual, ResidualDamaged
from fedbus.bus.store import Discarding, Publisher
from fedbus.bus.threads import Call, in_order
from fedbus.codec.framing import Framing, down_codec
from fedbus.codec.grid import Grid
from fedbus.rounds.broadcast import travels_whole
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus_aggregator.residuals import Residuals
from fedbus_aggregator.sealing import Sealing
from fedbus_aggregator.sums import Means

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NextModel:
    """What is to be published.

    Attributes:
        ref: the round.
        base: digest of the model that it started from; None: the update is the model.
        table: its tensors.
        means: the mean update.
    """

    ref: RoundRef
    base: str | None
    table: list[TensorSpec]
    means: Means


def residuals_of(models: ModelCache) -> Residuals:
    """What models lack, beside the models."""
    return Residuals(models.folder / "lost")


class Publishing:
    """Publishes models, and keeps each as a file, with what it lacks. All of it can be lost."""

    def __init__(
        self, bus: Bus, models: ModelCache, plan: Plan, publisher: Publisher | Discarding | None = None
    ) -> None:
        self._bus = bus
        self._models = models
        self._plan = plan
        self._publisher = publisher
        self._lost = residuals_of(models)

    async def publish(self, wanted: NextModel) -> tuple[str, int]:
        """Publish a model: the same bytes each time, as long as the files are there.

        Returns:
            Its digest, and its bytes on the wire.
        """
        base = await self._models.get(wanted.base) if wanted.base else None
        whole = travels_whole(self._plan, wanted.ref, base.manifest if base else None)
        try:
            with self._lost_before(wanted, base) as lost:
                return await self._publish(wanted, base, whole, lost)
        except ResidualDamaged as error:
            told = {"run": wanted.ref.run, "round": wanted.ref.number}
            log.warning("what earlier models lack %s: this one travels whole, without it", error, extra=told)
        return await self._publish(wanted, base, True, None)

    async def make_again(
        self, wanted: NextModel, made: ModelManifest, *, forgetful: bool = False
    ) -> tuple[str, int]:
        """What `publish` gave, when it made a model that is known.

        Whether it travels whole is what it says itself: its aggregator may have had to send it whole.

        Args:
            wanted: as for `publish`.
            made: the model.
            forgetful: as an aggregator that did not know what its base lacks.

        Raises:
            ResidualDamaged: what its base lacks is not here.
        """
        base = await self._models.get(wanted.base) if wanted.base else None
        whole = not made.is_delta
        planned = travels_whole(self._plan, wanted.ref, base.manifest if base else None)
        if whole and (forgetful or not planned):
            return await self._publish(wanted, base, whole, None)
        with self._lost_before(wanted, base) as lost:
            return await self._publish(wanted, base, whole, lost)

    def end(self, run: str) -> None:
        """A run is over: delete what its models lack."""
        self._lost.forget(run)

    def _lost_before(
        self, wanted: NextModel, base: CachedModel | None
    ) -> AbstractContextManager[Residual | None]:
        if base is None or not base.manifest.is_delta or base.manifest.run != wanted.ref.run:
            return nullcontext()  # a whole model lacks nothing; what another run's lacks is its own
        made = RoundRef(base.manifest.run, base.manifest.round)
        return Residual(self._lost.path(made, wanted.base or ""), Grid.of(wanted.table))

    async def _publish(
        self, wanted: NextModel, base: CachedModel | None, whole: bool, lost: Residual | None
    ) -> tuple[str, int]:
        ref, grid = wanted.ref, Grid.of(wanted.table)
        coded = down_codec(self._plan.codec.down, whole)
        with ExitStack() as files:
            made = files.enter_context(self._models.making(wanted.table))
            file = open_to_write(made, grid)
            files.callback(os.close, file)
            losing = None
            if not whole:
                part = files.enter_context(self._lost.making(ref))
                losing = files.enter_context(Losing(part, grid))
            framing = Framing(coded.name, coded.params)
            before = files.enter_context(FileIO(base.path)) if base else None
            sealing = Sealing(grid, framing, before, file, lost, losing)
            calls = _calls(grid, wanted.means, sealing)
            async with aclosing(in_order(calls, wanted.means.at_once)) as chunks:
                digest, manifest, size = await publish_model(
                    self._bus,
                    chunks,
                    run=ref.run,
                    round=ref.number,
                    parent=wanted.base,
                    codec=coded.name,
                    table=wanted.table,
                    values=None if losing is None else sealing.digests,
                    publisher=self._publisher,
                )
            if losing is not None:  # before the log names the model
                assert base is not None
                losing.complete()
                self._lost.keep(part, ref, digest, base.manifest.round)
            # The next round begins with it: nobody here has to download what was just made.
            await self._models.add(digest, manifest, made)
        return digest, size


async def _calls(grid: Grid, means: Means, sealing: Sealing) -> AsyncGenerator[Call[bytes]]:
    async with aclosing(means.means(grid)) as made:
        for span in grid.spans:
            write_mean, size = await anext(made)
            yield size, partial(sealing.seal, span, write_mean)

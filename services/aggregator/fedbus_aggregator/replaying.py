"""Rounds that are over, made again from what is stored: does the same model come out, to the bit?

The same code folds and encodes as when the round was made; only nothing is stored. Updates are read in the
order of the log and compared with it. Where models travel as differences, what a model lacks of the exact sum
is made again, too, from the last whole model on.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from fedbus.base.errors import RoundError, UnknownRun
from fedbus.bus import Bus
from fedbus.bus.log import read_round
from fedbus.bus.modelcache import model_cache
from fedbus.bus.models import read_manifest
from fedbus.bus.residualfile import ResidualDamaged
from fedbus.bus.runs import Runs
from fedbus.bus.store import Discarding
from fedbus.rounds.fold import Round
from fedbus.rounds.reasons import ReplayCode
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import AskReplay, Replayed
from fedbus_schemas.update import ModelManifest

from fedbus_aggregator.folding import Folding
from fedbus_aggregator.reading import Corrupted

# What a replay keeps, such as the models of its rounds, goes when nobody asks for more.
KEPT_S = 60.0


class Replaying:
    """Answers for one round at a time; asked for the next one of a run, it goes on where it was."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._runs = Runs(bus)
        self._kept = ExitStack()
        self._folding: Folding | None = None
        self._last: RoundRef | None = None  # the round that was made again last
        self._forgetting: asyncio.TimerHandle | None = None

    async def answer(self, data: bytes) -> Replayed:
        """Make a round again.

        Raises:
            UnknownRun: no such run, or no such round.
        """
        asked = AskReplay.model_validate_json(data)
        if self._forgetting is not None:
            self._forgetting.cancel()
        ref = RoundRef(asked.run, asked.round)
        try:
            return await self._replay(ref)
        except BaseException:
            self._forget()
            raise
        finally:
            self._forgetting = asyncio.get_running_loop().call_later(KEPT_S, self._forget)

    def close(self) -> None:
        """Delete what is kept."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forget()

    async def _replay(self, ref: RoundRef) -> Replayed:
        round_ = await self._read(ref)
        if round_.aggregated is None:
            why = round_.aborted.reason if round_.aborted else "it is not over"
            return _said(ref, round_, None, "no-model", f"the round has made no model: {why}")
        made = await read_manifest(self._bus, round_.aggregated.model)
        for earlier in await self._lacking(ref, made):
            before = await self._read(earlier)
            code, reason, _ = await self._make(earlier, before)
            if code != "equal":
                return _said(ref, round_, None, code, f"it builds on {earlier}: {reason}")
        code, reason, digest = await self._make(ref, round_, made)
        return _said(ref, round_, digest, code, reason)

    async def _make(
        self, ref: RoundRef, round_: Round, made: ModelManifest | None = None
    ) -> tuple[ReplayCode, str, str | None]:
        assert round_.aggregated is not None
        folding = await self._prepared(ref)
        model = round_.aggregated.model
        made = made or await read_manifest(self._bus, model)
        try:
            digest = await folding.make_again(ref, round_, model, made)
        except Corrupted as error:
            self._forget()
            if error.refusal.code == "too-large":
                raise RoundError(error.refusal.reason) from error
            if error.refusal.code == "stream-missing":
                return "not-retained", f"an update of {error.update.worker} is not stored any more", None
            return "different", f"the update of {error.update.worker}: {error.refusal.reason}", None
        except ResidualDamaged as error:
            self._forget()
            return "not-retained", f"what its base lacks of the exact sum {error}", None
        if digest == model:
            self._last = ref
            return "equal", "the same model comes out", digest
        return "different", f"model {digest[:12]} comes out, the log says {model[:12]}", digest

    async def _lacking(self, ref: RoundRef, made: ModelManifest) -> list[RoundRef]:
        """Earlier rounds to make again first: those from the last whole model on, if it is a difference."""
        found: list[RoundRef] = []
        parent = made.parent
        while parent is not None:
            base = await read_manifest(self._bus, parent)
            earlier = RoundRef(base.run, base.round)
            if not base.is_delta or base.run != ref.run or earlier == self._last:
                break
            found.insert(0, earlier)
            parent = base.parent
        return found

    async def _prepared(self, ref: RoundRef) -> Folding:
        if self._folding is None or self._last is None or self._last.run != ref.run:
            self._forget()
            record, _ = await self._runs.get(ref.run)
            models = self._kept.enter_context(model_cache(self._bus, None))
            self._folding = Folding(self._bus, models, record.plan, Discarding())
            self._kept.callback(self._folding.close)
        return self._folding

    async def _read(self, ref: RoundRef) -> Round:
        round_ = await read_round(self._bus, ref)
        if round_.opened is None:
            await self._runs.get(ref.run)  # raises where there is none of that name
            raise UnknownRun(f"{ref.run} has no round {ref.number}")
        return round_

    def _forget(self) -> None:
        self._kept.close()
        self._folding, self._last = None, None


def _said(ref: RoundRef, round_: Round, digest: str | None, code: ReplayCode, reason: str) -> Replayed:
    return Replayed(
        run=ref.run,
        round=ref.number,
        code=code,
        reason=reason,
        updates=len(round_.counted),
        model=round_.aggregated.model if round_.aggregated else None,
        again=digest,
    )

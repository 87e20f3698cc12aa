"""The fold of one run's rounds: memory for one sum and a bounded number of scratch vectors.

An update is decoded into scratch while it is verified, and added once `accepted` is
stored, in the order of the log. A takeover reads the accepted updates again, which
write-once subjects make the same bytes, so the sum is the same to the bit.
"""

from __future__ import annotations

from fedbus.bus import Bus
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.threads import apart
from fedbus.codec.grid import CHUNK_ELEMENTS, Grid
from fedbus.rounds.close import Attempt
from fedbus.rounds.collecting import Refusal
from fedbus.rounds.fold import Round
from fedbus.strategies import Running, strategy
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import TensorSpec

from fedbus_aggregator.publishing import NextModel, Publishing
from fedbus_aggregator.reading import ReadUpdate, UpdateReader

# Several small updates are verified before one entry accepts them all; a large one goes alone.
SCRATCH_BYTES = 16 << 20
MOST_IN_ONE_ENTRY = 64


class Corrupted(Exception):
    """An accepted update no longer reads as it did when it was accepted."""

    def __init__(self, update: AcceptedUpdate, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.update = update
        self.refusal = refusal


class Folding:
    """What an aggregator keeps in memory of one run. All of it can be lost."""

    def __init__(self, bus: Bus, models: ModelCache, plan: Plan) -> None:
        self._bus = bus
        self._models = models
        self._plan = plan
        self._reader = UpdateReader(bus, plan)
        self._publishing = Publishing(bus, models, plan)
        self._strategy: Running = strategy(plan.strategy.name, plan.strategy.params)
        self._round: RoundRef | None = None
        self._base: str | None = None
        self._table: list[TensorSpec] | None = None
        self._read: dict[str, ReadUpdate] = {}
        self._folded: list[str] = []

    async def begin(self, ref: RoundRef, round_: Round) -> None:
        """Prepare for a round; calling it again changes nothing."""
        if self._round == ref:
            return
        self._forget_reads()
        assert round_.opened is not None
        self._base = round_.opened.base
        self._table = (await self._models.get(self._base)).table if self._base else None
        await self._start_sum()
        self._round = ref

    def is_last(self, number: int, round_: Round) -> bool:
        """Whether no round follows an ended one."""
        return round_.aborted is not None or number >= self._plan.rounds

    @property
    def batch(self) -> int:
        """How many updates to verify before one `accepted` entry."""
        if self._table is None:
            return 1
        return max(1, min(MOST_IN_ONE_ENTRY, SCRATCH_BYTES // Grid.of(self._table).bytes))

    async def verify(self, ref: RoundRef, attempt: Attempt, round_: Round) -> AcceptedUpdate | Refusal:
        """Read and check one update, and keep its values until it is added or discarded."""
        known = next((r for r in self._read.values() if _attempt(r.entry) == attempt), None)
        if known is not None:
            return known.entry
        read = await self._reader.read(ref, attempt, round_, self._table if self._base else None)
        if isinstance(read, Refusal):
            return read
        self._read[read.entry.key] = read
        return read.entry

    def to_add(self, round_: Round) -> int:
        """How many updates the sum lacks of what the log accepts; all, where it must be folded again."""
        keys = [update.key for update in round_.counted]
        return len(keys) - (len(self._folded) if self._folded == keys[: len(self._folded)] else 0)

    async def add_accepted(self, ref: RoundRef, round_: Round) -> None:
        """Bring the sum up to what the log accepts.

        Raises:
            Corrupted: an accepted update reads differently now.
        """
        counted = round_.counted
        keys = [update.key for update in counted]
        if self._folded != keys[: len(self._folded)]:
            # Another instance accepted in another order, or an update was voided: fold again.
            await self._start_sum()
        for update in counted[len(self._folded) :]:
            read = self._read.pop(update.key, None) or await self._read_again(ref, update, round_)
            if self._table is None:
                assert read.table is not None
                self._table = read.table
                await self._start_sum()
            await apart(read.values.nbytes, self._add, read)
            self._reader.release(read.values)
            self._folded.append(update.key)

    async def _start_sum(self) -> None:
        self._folded = []
        if self._table:
            size = Grid.of(self._table).size
            await apart(4 * size, self._strategy.start, size)

    def discard(self, round_: Round) -> None:
        """Drop verified updates that the round will not accept any more."""
        accepted = {update.key for update in round_.accepted}
        for key in [k for k in self._read if k not in accepted]:
            self._reader.release(self._read.pop(key).values)

    async def publish(self, ref: RoundRef) -> tuple[str, int]:
        """Publish the next model; return its digest and its bytes on the wire."""
        assert self._table is not None
        wanted = NextModel(ref, self._base, self._table, self._strategy.finish)
        return await self._publishing.publish(wanted)

    def end(self, run: str) -> None:
        """Delete what is kept as files for the next round: the run has none."""
        self._publishing.end(run)

    async def _read_again(self, ref: RoundRef, update: AcceptedUpdate, round_: Round) -> ReadUpdate:
        table = self._table if self._base else None
        read = await self._reader.read(ref, _attempt(update), round_, table, again=True)
        if isinstance(read, Refusal):
            raise Corrupted(update, read)
        if read.entry.digest != update.digest:
            self._reader.release(read.values)
            raise Corrupted(
                update, Refusal("digest-mismatch", "the manifest is not the one that was accepted")
            )
        return read

    def _add(self, read: ReadUpdate) -> None:
        values, weight = read.values, read.entry.weight
        for start in range(0, values.size, CHUNK_ELEMENTS):
            self._strategy.add(start, values[start : start + CHUNK_ELEMENTS], weight)
        self._strategy.counted(weight)

    def _forget_reads(self) -> None:
        for read in self._read.values():
            self._reader.release(read.values)
        self._read = {}


def _attempt(update: AcceptedUpdate) -> Attempt:
    return update.worker, update.node, update.attempt

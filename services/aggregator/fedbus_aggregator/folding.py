"""The fold of one run's rounds: memory for one sum and a bounded number of scratch vectors.

An update is decoded into scratch while it is verified, and added once `accepted` is
stored, in the order of the log. A takeover reads the accepted updates again, which
write-once subjects make the same bytes, so the sum is the same to the bit.
A columnwise strategy has no sum: when the round is closed, all updates are read once more.
"""

from __future__ import annotations

from fedbus.bus import Bus
from fedbus.bus.modelcache import ModelCache
from fedbus.bus.store import Discarding, Publisher
from fedbus.codec.grid import Grid
from fedbus.rounds.close import Attempt
from fedbus.rounds.collecting import Refusal
from fedbus.rounds.fold import Round
from fedbus.strategies import Columnwise, strategy
from fedbus_schemas.ids import RoundRef
from fedbus_schemas.log import AcceptedUpdate
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import ModelManifest, TensorSpec

from fedbus_aggregator.columns import Columns
from fedbus_aggregator.publishing import NextModel, Publishing
from fedbus_aggregator.reading import Corrupted, ReadUpdate, UpdateReader
from fedbus_aggregator.sums import Sum

# Several small updates are verified before one entry accepts them all; a large one goes alone.
SCRATCH_BYTES = 16 << 20
MOST_IN_ONE_ENTRY = 64


class Folding:
    """What an aggregator keeps in memory of one run. All of it can be lost.

    Args:
        bus: the connection.
        models: of this host.
        plan: of the run.
        publisher: what stores the models; one of the connection by default.
    """

    def __init__(
        self, bus: Bus, models: ModelCache, plan: Plan, publisher: Publisher | Discarding | None = None
    ) -> None:
        self._bus = bus
        self._models = models
        self._plan = plan
        self._reader = UpdateReader(bus, plan)
        self._publishing = Publishing(bus, models, plan, publisher)
        made = strategy(plan.strategy.name, plan.strategy.params)
        self._fold: Sum | Columnwise = made if isinstance(made, Columnwise) else Sum(made)
        self._round: RoundRef | None = None
        self._base: str | None = None
        self._table: list[TensorSpec] | None = None
        self._read: dict[str, ReadUpdate] = {}

    async def begin(self, ref: RoundRef, round_: Round) -> None:
        """Prepare for a round; calling it again changes nothing."""
        if self._round == ref:
            return
        self.close()
        assert round_.opened is not None
        base = round_.opened.base
        # Other runs' models pass meanwhile: it is held, so that it need not be looked for again.
        self._table = (await self._models.hold(base)).table if base else None
        self._base = base
        if isinstance(self._fold, Sum):
            await self._fold.start(self._table)
        self._round = ref

    def close(self) -> None:
        """Let go of what the last round needed."""
        for read in self._read.values():
            self._reader.release(read.values)
        self._read, self._round = {}, None
        if self._base:
            self._models.release(self._base)
            self._base = None

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
        """Read and check one update; where there is a sum, keep its values until added or dropped."""
        table, keep = self._table if self._base else None, isinstance(self._fold, Sum)
        read = await self._reader.read(ref, attempt, round_, table, keep=keep)
        if isinstance(read, Refusal):
            return read
        self._read[read.entry.key] = read
        return read.entry

    def to_add(self, round_: Round) -> int:
        """How many updates the sum, if there is one, lacks of what the log accepts."""
        return self._fold.lacks(_keys(round_)) if isinstance(self._fold, Sum) else 0

    async def add_accepted(self, ref: RoundRef, round_: Round) -> None:
        """Bring the sum, if there is one, up to what the log accepts.

        Raises:
            Corrupted: an accepted update reads differently now.
        """
        if not isinstance(self._fold, Sum):
            return
        keys = _keys(round_)
        if not self._fold.begins(keys):
            # Another instance accepted in another order, or an update was voided: fold again.
            await self._fold.start(self._table)
        for update in round_.counted[len(keys) - self._fold.lacks(keys) :]:
            read = self._read.pop(update.key, None) or await self._read_again(ref, update, round_)
            if self._table is None:
                assert read.table is not None
                self._table = read.table
                await self._fold.start(self._table)
            assert read.values is not None
            await self._fold.add(update.key, read.values, update.weight)
            self._reader.release(read.values)

    def verified(self, round_: Round) -> dict[Attempt, AcceptedUpdate]:
        """Updates that were verified and can be accepted, in the order of their reading.

        Those that can count no more, since another instance was faster or the round is closed, are dropped.
        """
        found: dict[Attempt, AcceptedUpdate] = {}
        for key, read in list(self._read.items()):
            attempt = _attempt(read.entry)
            if round_.closing is None and round_.can_count(*attempt):
                found[attempt] = read.entry
            elif key not in round_.keys:
                self._reader.release(self._read.pop(key).values)
        return found

    async def publish(self, ref: RoundRef, round_: Round) -> tuple[str, int]:
        """Publish base plus mean update as the next model; return its digest and its bytes on the wire.

        Raises:
            Corrupted: an accepted update reads differently now.
            RoundError: this host has too little memory to read all updates once more.
        """
        source = await self._source(ref, round_)
        assert self._table is not None
        return await self._publishing.publish(NextModel(ref, self._base, self._table, source))

    async def make_again(self, ref: RoundRef, round_: Round, model: str, made: ModelManifest) -> str:
        """The digest of the model that comes out now, where a round has made one.

        Raises:
            Corrupted: an accepted update reads differently now, or is not stored any more.
            ResidualDamaged: what the round's base lacks is not here.
        """
        await self.begin(ref, round_)
        await self.add_accepted(ref, round_)
        source = await self._source(ref, round_)
        assert self._table is not None
        wanted = NextModel(ref, self._base, self._table, source)
        digest, _ = await self._publishing.make_again(wanted, made)
        if digest != model and not made.is_delta:
            # Its aggregator may have lost what the base lacks, and sent the model whole for the plan's sake.
            again, _ = await self._publishing.make_again(wanted, made, forgetful=True)
            return again if again == model else digest
        return digest

    async def _source(self, ref: RoundRef, round_: Round) -> Sum | Columns:
        """What the mean is made of; brings the tensors of a first model."""
        if isinstance(self._fold, Sum):
            return self._fold
        columns = await Columns.open(self._bus, self._plan, self._fold, ref, round_.counted, self._table)
        self._table = self._table or columns.table
        return columns

    def end(self, run: str) -> None:
        """The run is over: let go of all, and delete what is kept as files for a next round."""
        self.close()
        self._publishing.end(run)

    async def _read_again(self, ref: RoundRef, update: AcceptedUpdate, round_: Round) -> ReadUpdate:
        table = self._table if self._base else None
        read = await self._reader.read(ref, _attempt(update), round_, table, again=True)
        if isinstance(read, Refusal):
            raise Corrupted(update, read)
        if read.entry.digest != update.digest:
            self._reader.release(read.values)
            raise Corrupted(update, Refusal.of_another_manifest())
        return read


def _keys(round_: Round) -> list[str]:
    return [update.key for update in round_.counted]


def _attempt(update: AcceptedUpdate) -> Attempt:
    return update.worker, update.node, update.attempt

"""Faults in a federation of real processes, drawn from a seed, and an oracle that knows every model.

    python -m support.storm --faults 200 --seed 1      # `make chaos`

Nothing is mended by hand: the stack's own supervisor starts again what dies, and the run goes on by itself.
The oracle computes each model with plain numpy from the seeds of the updates that the log says count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fedbus.api.federation import Federation
from fedbus.base.errors import BusError, BusUnavailable
from fedbus.bus import Bus
from fedbus.bus.log import RoundLog
from fedbus.bus.models import load_values, read_manifest
from fedbus.rounds.fold import Round
from fedbus.rounds.planning import derive_seed
from fedbus.runtime.logfile import tail
from fedbus.runtime.stack import BROKER, LocalStack
from fedbus.runtime.supervisor import Supervisor
from fedbus_schemas.messages import Replayed
from fedbus_schemas.plan import Plan
from support.processes import processes

WORKERS = ("w1", "w2", "w3", "w4")
SERVICES = ("planner", "aggregator", "evaluator", "enroll")
TRAINER = "trainer of "
ELEMENTS = 600_000  # 2.4 MB, three chunks: there is a middle of an upload
TRAINS_S = 0.1
PATIENCE_S = 60.0
REPLAY_S = 10.0
VICTIMS = (BROKER, *SERVICES, "worker", "trainer")
MOMENTS = ("opened", "accepted", "closing", "aggregated", "finished")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to whom, and when: so long after a kind of log entry.

    A `kill` is SIGKILL, a `pause` is SIGSTOP and SIGCONT, and a `hang` is SIGSTOP for good.
    """

    kind: str
    victim: str
    moment: str
    after_s: float
    pause_s: float = 0.0


def schedule(chance: random.Random) -> Iterator[Fault]:
    """Each fault at each moment of a round, in any order; then faults without end."""
    matrix = [(kind, victim, at) for kind in ("kill", "pause") for victim in VICTIMS for at in MOMENTS]
    chance.shuffle(matrix)
    for kind, victim, moment in matrix:
        yield _fault(chance, kind, victim, moment)
    while True:
        kind = chance.choices(("kill", "pause", "hang"), (12, 7, 1))[0]
        victims = VICTIMS if kind != "hang" else (BROKER, *SERVICES)
        yield _fault(chance, kind, chance.choice(victims), chance.choice(MOMENTS))


def _fault(chance: random.Random, kind: str, victim: str, moment: str) -> Fault:
    if victim in ("worker", "trainer"):
        victim = chance.choice(WORKERS) if victim == "worker" else TRAINER + chance.choice(WORKERS)
    pause = chance.uniform(0.2, 3.0) if kind == "pause" else 0.0
    return Fault(kind, victim, moment, chance.uniform(0.0, 0.3), pause)


@dataclass(slots=True)
class Outcome:
    """What came of a storm. `recovered` has the seconds by kind and victim."""

    seed: int
    rounds: int = 0
    updates: int = 0
    members_missing: int = 0
    replayed: int = 0
    recovered: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)

    def table(self) -> str:
        """For people."""
        lines = [f"{'fault':<8}{'of':<12}{'times':>6}{'p50 s':>8}{'p95 s':>8}{'max s':>8}"]
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (kind, victim), seconds in self.recovered.items():
            groups[kind, _group(victim)] += seconds
        for (kind, group), seconds in sorted(groups.items()):
            p50, p95 = np.percentile(seconds, (50, 95))
            lines.append(f"{kind:<8}{group:<12}{len(seconds):>6}{p50:>8.2f}{p95:>8.2f}{max(seconds):>8.2f}")
        faults = sum(map(len, self.recovered.values()))
        lines.append(
            f"seed {self.seed}: {faults} faults, {self.rounds} rounds finished, {self.updates} updates "
            f"counted, {self.members_missing} times a round went on without a member, "
            f"{self.replayed} rounds made again with the same model, {len(self.wrong)} models wrong"
        )
        return "\n".join([*lines, *self.wrong[:20]])


def _group(victim: str) -> str:
    if victim in WORKERS:
        return "worker"
    return "trainer" if victim.startswith(TRAINER) else victim


class Storm:
    """A run, and what is done to those who take part in it."""

    def __init__(self, stack: LocalStack, bus: Bus, seed: int) -> None:
        self.stack = stack
        self.outcome = Outcome(seed)
        self._federation = Federation(bus)
        self._bus = bus
        self._chance = random.Random(seed)
        self._plan = Plan.model_validate(
            {
                "task": "noop",
                "rounds": 1_000_000,
                "seed": seed,
                "train": {"elements": ELEMENTS, "seconds": TRAINS_S},
                "codec": {"up": "dense"},
                "cohort": {"min": len(WORKERS)},
                "close": {"quorum": 2, "deadline_s": 30.0},
                "evaluate": {"federated": False},
                "retain": {"rounds": 20},
            }
        )
        self._changed = asyncio.Event()
        self._log = RoundLog(bus, lambda _: self._changed.set())

    async def rage(self, more: Callable[[int], bool]) -> Outcome:
        """Inject faults one by one for as long as `more` of their count says so; then check every model."""
        await self._federation.wait_for("planner", PATIENCE_S)
        await self._persist(self._all_are_here)
        run = await self._federation.start(self._plan.model_dump(by_alias=True, exclude_none=True), "storm")
        await self._log.start(1)
        for count, fault in enumerate(schedule(self._chance)):
            if not more(count):
                break
            await self._strike(fault)
        reached = self._number()
        await self._until(lambda: self._number() > reached, "one more round")
        await self._persist(lambda: self._federation.abort(run))
        await self._until(lambda: self._round().ended, "the end")
        await self._check()
        await self._log.close()
        return self.outcome

    async def _all_are_here(self) -> None:
        here = len(await self._federation.members.workers())
        if here < len(WORKERS):
            raise BusUnavailable(f"{here} workers are here")

    def _number(self) -> int:
        return max((ref.number for ref in self._log.rounds), default=0)

    def _round(self) -> Round:
        return self._log.of("storm")[self._number()]

    def _entries(self, author: str, worker: str | None = None) -> int:
        """How many entries somebody has written, or of a worker: how many updates of it count."""
        rounds = self._log.of("storm").values()
        if worker is not None:
            return sum(update.worker == worker for r in rounds for update in r.accepted)
        if author == "evaluator":
            return sum(r.evaluated is not None for r in rounds)
        if author == "aggregator":
            return sum(len(r.accepted) + bool(r.aggregated) for r in rounds)
        return sum(bool(r.opened) + bool(r.closing) + bool(r.finished) for r in rounds)

    async def _strike(self, fault: Fault) -> None:
        begun = self._number()

        def is_moment() -> bool:
            if self._number() <= begun:
                return False
            round_ = self._round()
            return bool(getattr(round_, fault.moment)) or round_.finished is not None

        await self._until(is_moment, f"a moment for {fault}")
        await asyncio.sleep(fault.after_s)
        before = self._signs(fault.victim)
        struck = time.monotonic()
        if fault.kind == "kill":
            self._signal(fault.victim, signal.SIGKILL)
        else:
            self._signal(fault.victim, signal.SIGSTOP)
        if fault.kind == "pause":
            await asyncio.sleep(fault.pause_s)
            self._signal(fault.victim, signal.SIGCONT)
            struck = time.monotonic()
        if fault.victim == "enroll":
            await self._federation.wait_for("enroll", PATIENCE_S)
        else:
            await self._until(lambda: self._signs(fault.victim) > before, f"work after {fault}")
        self.outcome.recovered[fault.kind, fault.victim].append(time.monotonic() - struck)
        await self._replay(begun)

    async def _replay(self, number: int) -> None:
        """Have a round that is over made again."""
        if number < 1 or self._log.of("storm")[number].aggregated is None:
            return
        found: list[Replayed] = []

        async def ask() -> None:
            # Whoever is killed between a request and its answer takes the request along.
            with suppress(TimeoutError):
                async with asyncio.timeout(REPLAY_S):
                    found.append(await self._federation.replay("storm", number))
                    return
            raise BusUnavailable("no answer")

        await self._persist(ask)
        self.outcome.replayed += found[0].code == "equal"
        if found[0].code not in ("equal", "not-retained"):
            self.outcome.wrong.append(f"round {number} made again: {found[0].code}, {found[0].reason}")

    def _signs(self, victim: str) -> int:
        """What only this one can have done; it grows once it works again."""
        if victim == BROKER:
            return max((round_.last_seq for round_ in self._log.of("storm").values()), default=0)
        worker = victim.removeprefix(TRAINER)
        return self._entries(victim, worker if worker in WORKERS else None)

    def _signal(self, victim: str, number: int) -> None:
        with suppress(ProcessLookupError, ValueError, KeyError):  # it is being started again
            if victim == BROKER:
                os.kill(self.stack.broker.pid, number)
                return
            known = {each.pid: each for each in processes()}
            (agent,) = [
                pid
                for pid, each in known.items()
                if each.parent == self.stack.pid(victim.removeprefix(TRAINER))
            ]
            if victim.startswith(TRAINER):
                (agent,) = [pid for pid, each in known.items() if each.parent == agent]
            os.kill(agent, number)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            state = await self._federation.run("storm")
            raise AssertionError(
                f"seed {self.outcome.seed}: {what} did not come in {PATIENCE_S:g} s; "
                f"the run is {state.state}: {state.reason}"
            ) from None

    async def _persist(self, do: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(BusError):
                    await do()
                    return
                await asyncio.sleep(0.1)

    # The oracle

    async def _check(self) -> None:
        """Every model is what its log says, and nothing counts twice."""
        rounds = self._log.of("storm")
        value: np.float32 | None = None
        for number, round_ in sorted(rounds.items()):
            if round_.aggregated is None:
                continue
            model = await load_values(self._bus, await read_manifest(self._bus, round_.aggregated.model))
            if number == 0:
                expected = np.float32(0)
            else:
                assert value is not None
                expected = value + self._mean(number, round_)
                self.outcome.rounds += 1
                self.outcome.updates += len(round_.counted)
                self.outcome.members_missing += len(round_.members) - len(round_.counted)
            counts = Counter(update.worker for update in round_.accepted)
            if max(counts.values()) > 1 or round_.voided:
                self.outcome.wrong.append(f"round {number}: {counts}, voided {round_.voided}")
            if len(model) != ELEMENTS or model.min() != model.max():
                self.outcome.wrong.append(f"round {number}: its model is a mix of updates")
            elif not np.isclose(model[0], expected, rtol=1e-5, atol=1e-5):
                self.outcome.wrong.append(f"round {number}: its model is {model[0]}, and not {expected}")
            value = model[0]

    def _mean(self, number: int, round_: Round) -> np.float32:
        added = []
        for update in round_.counted:
            seed = derive_seed(self._plan, number, f"{update.worker}/{update.node}")
            chance = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
            added.append(np.float32(chance.standard_normal()))
        weights = [np.float32(update.weight) for update in round_.counted]
        return np.float32(np.average(added, weights=weights))


async def storm(folder: Path, seed: int, more: Callable[[int], bool], say: Callable[[str], None]) -> Outcome:
    """A whole federation, its storm and its end."""
    async with LocalStack(folder) as stack:
        stack.start_services()
        for name in WORKERS:
            stack.start_worker(name)
        supervising = asyncio.create_task(Supervisor(stack, say).run())
        bus = await Bus.connect(stack.broker.accounts.credentials("operator"))
        raging = asyncio.create_task(Storm(stack, bus, seed).rage(more))
        try:
            await asyncio.wait([supervising, raging], return_when=asyncio.FIRST_COMPLETED)
            if supervising.done():
                await supervising  # it says why
            return await raging
        finally:
            for task in (raging, supervising):
                task.cancel()
            await asyncio.gather(raging, supervising, return_exceptions=True)
            await bus.close()


def main() -> int:
    """`make chaos`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, help="end after so long, whatever the number of faults")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--verbose", action="store_true", help="print what the supervisor says")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedbus-chaos-"))
    ends = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    print(f"seed {options.seed}", flush=True)
    say = print if options.verbose else lambda _: None
    try:
        outcome = asyncio.run(
            storm(folder, options.seed, lambda count: count < options.faults and time.monotonic() < ends, say)
        )
    except Exception:
        for path in sorted((folder / "logs").glob("*.log")):
            print(f"--- {path.name}\n{tail(path, 3000).decode(errors='replace')}", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(outcome.table())
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

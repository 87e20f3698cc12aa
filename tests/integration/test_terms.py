"""The planner reads on what terms workers came, and nobody can keep it reading."""

from __future__ import annotations

from fedbus.bus import Bus
from fedbus.bus.provision import provision
from fedbus.rounds.roster import Roster
from fedbus_planner.terms import Terms
from support.natsd import Stack
from support.rounds import beat


async def test_a_worker_that_starts_again_and_again_does_not_hold_up_the_planner(stack: Stack) -> None:
    bus = await Bus.connect(stack.credentials("planner"))
    try:
        await provision(bus)
        terms, reads = Terms(bus), 0

        class Restless:
            """Starts anew whenever it is looked up."""

            async def get(self, key: str) -> None:
                nonlocal reads
                reads += 1
                terms.meet(beat("restless").model_copy(update={"incarnation": f"i{reads}"}))

        terms._bucket = Restless()  # type: ignore[assignment]  # only `get` is asked
        terms.meet(beat("restless"))
        terms.meet(beat("calm"))
        await terms.learn(Roster())
        assert reads == 2
    finally:
        await bus.close()

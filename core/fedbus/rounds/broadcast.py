"""How a round's model travels: whole, or as a difference to the model that the round started from."""

from __future__ import annotations

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.plan import Plan
from fedbus_schemas.update import ModelManifest

from fedbus.codec.framing import sends_deltas


def travels_whole(plan: Plan, ref: RoundRef, base: ModelManifest | None) -> bool:
    """Whether a round's model travels whole, and exactly, though the plan sends differences.

    The first model of a run does, the last one, and every so many between them: who comes late needs that one
    and the differences since, and no error outlives it. All models do where the plan sends none.

    Args:
        plan: of the run.
        ref: the round.
        base: the model that it started from, perhaps one of another run.
    """
    if base is None or base.run != ref.run or not sends_deltas(plan.codec.down):
        return True
    return ref.number >= plan.rounds or ref.number % plan.codec.full_every == 0

"""Whether a round's updates and model fit into the broker's storage, and what may go to make room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import RunRecord
from fedbus_schemas.plan import Plan


class Free(NamedTuple):
    """Bytes that the broker's streams can still take."""

    updates: int
    models: int

    def after(self, plan: Plan, members: int, model_bytes: int) -> Free:
        """What is left when a round has taken all that it may."""
        updates, model = _needs(plan, members, model_bytes)
        return Free(self.updates - updates, self.models - model)


def shortage(plan: Plan, members: int, model_bytes: int, free: Free) -> str | None:
    """Why the round cannot be opened yet; None when there is room.

    Args:
        plan: for its bound on an update.
        members: how many updates may come.
        model_bytes: the model as raw float32; no codec makes it or an update much larger.
        free: what the broker has.
    """
    for what, want, has in zip(("updates", "model"), _needs(plan, members, model_bytes), free, strict=True):
        if want > has:
            told = f"the broker has {max(0, has) / 1e6:.0f} MB free for it"
            return f"the round's {what} may need {want / 1e6:.0f} MB, {told}"
    return None


def _needs(plan: Plan, members: int, model_bytes: int) -> tuple[int, int]:
    """The most that a round's updates and its model may take."""
    most = int(model_bytes * 1.01) + (1 << 16)
    return members * min(plan.max_update_bytes, most), most


def obsolete(plan: Plan, number: int) -> int:
    """The highest round whose updates need not be kept once round `number` is open; -1: none."""
    if plan.retain == "all":
        return -1
    # The cohort's scores of a model are collected when the round that follows has closed.
    return number - 1 - max(plan.retain.rounds, 1 if plan.evaluate.federated else 0)


def expendable(stored: Iterable[RoundRef], records: Mapping[str, RunRecord]) -> list[RoundRef]:
    """Rounds whose updates may go when room is short, the least missed first.

    First what belongs to no run that is known (a worker may store under any name), then
    runs that are over, oldest first, then ended rounds of open runs. A round that is open,
    or a run that keeps everything, is never touched.

    Args:
        stored: rounds of which something is stored.
        records: of all runs.
    """
    ranked: list[tuple[int, float, RoundRef]] = []
    for ref in stored:
        record = records.get(ref.run)
        if record is None:
            ranked.append((0, 0.0, ref))
        elif record.plan.retain == "all":
            continue
        elif record.done:
            ranked.append((1, record.created_at, ref))
        elif ref.number < record.open_round - (1 if record.plan.evaluate.federated else 0):
            # The round before the open one may hold scores that nobody has read yet.
            ranked.append((2, record.created_at, ref))
    return [ref for _, _, ref in sorted(ranked)]

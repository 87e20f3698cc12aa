"""Whether a round's updates and model fit into the broker's storage, and what may go to make room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedbus_schemas.ids import RoundRef
from fedbus_schemas.messages import RunRecord
from fedbus_schemas.plan import Plan


def shortage(
    plan: Plan, members: int, model_bytes: int, free_for_updates: int, free_for_models: int
) -> str | None:
    """Why the round cannot be opened yet; None when there is room.

    Args:
        plan: for its bound on an update.
        members: how many updates may come.
        model_bytes: the model as raw float32; no codec makes it or an update much larger.
        free_for_updates: bytes that FB_UPDATES can still take.
        free_for_models: bytes that FB_MODELS can still take.
    """
    most = int(model_bytes * 1.01) + (1 << 16)
    needed = members * min(plan.max_update_bytes, most)
    for what, want, free in (("updates", needed, free_for_updates), ("model", most, free_for_models)):
        if want > free:
            has = f"the broker has {free / 1e6:.0f} MB free for it"
            return f"the round's {what} may need {want / 1e6:.0f} MB, {has}"
    return None


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

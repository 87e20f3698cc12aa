"""What the planner emits of a round that has ended: its root, and what follows from its log."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from fedbus.base.errors import BusError
from fedbus.bus import Bus
from fedbus.bus.log import RoundLog
from fedbus.rounds.fold import Round
from fedbus.telemetry.ofround import root_of, round_spans
from fedbus.telemetry.stored import read_spans
from fedbus.telemetry.tracer import Tracer
from fedbus_schemas.ids import RoundRef


def emit(tracer: Tracer, ref: RoundRef, round_: Round) -> None:
    """Emit the root of a round if it has ended; soon, since we may die."""
    if tracer.on and round_.ended:
        tracer.add(*round_spans(ref, round_, tracer.pid))
        tracer.flush_soon()


async def emit_missing(tracer: Tracer, bus: Bus, log: RoundLog, runs: Iterable[str]) -> None:
    """Emit the roots that a planner before us did not, being killed between the log and the trace.

    Args:
        tracer: ours.
        bus: to read what was emitted.
        log: the rounds: of each run at least those whose root may be missing.
        runs: those that are open.
    """
    for run in runs:
        ended = {number: round_ for number, round_ in log.of(run).items() if round_.ended}
        for number in sorted(ended, reverse=True) if tracer.on else ():
            root, opened = root_of(ended[number]), ended[number].opened
            assert root is not None
            assert opened is not None
            with suppress(BusError):
                stored = await read_spans(bus, root.trace_id, opened.at)
                if any(span.span_id == root.span_id for span in stored):
                    break  # they are sent in their order
                emit(tracer, RoundRef(run, number), ended[number])

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


async def emit(tracer: Tracer, ref: RoundRef, round_: Round) -> None:
    """Emit the root of a round if it has ended; at once, since we may die."""
    if tracer.on and round_.ended:
        tracer.add(*round_spans(ref, round_, tracer.pid))
        with suppress(BusError):
            await tracer.send()


async def emit_missing(tracer: Tracer, bus: Bus, log: RoundLog, runs: Iterable[str]) -> None:
    """Emit the roots that a planner before us did not, being killed between the log and the trace.

    Args:
        tracer: ours.
        bus: to read what was emitted.
        log: the rounds.
        runs: those that are open; only the last round of each that has ended can lack its root.
    """
    for run in runs:
        ended = {number: round_ for number, round_ in log.of(run).items() if round_.ended}
        if not (tracer.on and ended):
            continue
        ref, round_ = RoundRef(run, max(ended)), ended[max(ended)]
        root, opened = root_of(round_), round_.opened
        assert root is not None
        assert opened is not None
        with suppress(BusError):
            stored = await read_spans(bus, root.trace_id, opened.at)
            if not any(span.span_id == root.span_id for span in stored):
                await emit(tracer, ref, round_)

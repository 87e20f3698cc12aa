"""The log of a round as the stream has it, read by the client's plainest means."""

from __future__ import annotations

from collections import Counter

import numpy as np
from fedbus.bus import Bus
from fedbus.bus.log import Stored
from fedbus.bus.store import leader_get
from fedbus_schemas import subjects
from fedbus_schemas.log import decode_entry
from fedbus_schemas.report import RunReport
from support.federation import Parties


async def entries(bus: Bus, run: str, number: int) -> list[Stored]:
    """All entries of a round, in order."""
    found: list[Stored] = []
    pattern, seq = subjects.log_of(run, number), 1
    while last := await leader_get(bus, subjects.ROUNDS, {"seq": seq, "next_by_subj": pattern}):
        found.append(Stored(*last))
        seq = last[0] + 1
    return found


async def check_once(parties: Parties, report: RunReport, workers: int, total: float) -> None:
    """Each worker counts once in each round, no entry says what another has said, and the model is right."""
    for r in report.rounds:
        counts = Counter(u.worker for u in r.accepted_updates)
        assert sorted(counts.values()) == [1] * workers, f"{report.run}/{r.round}: {counts}"
        keys = Counter(
            key
            for each in await entries(parties.operator, report.run, r.round)
            for key in decode_entry(each.data).keys
        )
        assert max(keys.values()) == 1, f"{report.run}/{r.round}: {keys}"
    np.testing.assert_allclose(await parties.model(report.model), total, rtol=1e-6, err_msg=report.run)

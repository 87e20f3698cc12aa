"""Users say that a run is lost when its server dies. Here everything dies, and no run is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.storm import storm

SEED, FAULTS = 94_094, 4  # broker, planner, aggregator and a worker; `make chaos` has more of both


async def test_whatever_is_killed_or_stopped_the_run_goes_on_and_every_model_is_right(tmp_path: Path) -> None:
    said: list[str] = []
    try:
        outcome = await storm(tmp_path / "stack", SEED, lambda count: count < FAULTS, said.append)
    finally:
        shutil.rmtree(tmp_path / "stack", ignore_errors=True)
    assert outcome.wrong == [], outcome.table()
    assert sum(map(len, outcome.recovered.values())) == FAULTS
    assert outcome.rounds > FAULTS, outcome.table()
    assert outcome.replayed > 0, outcome.table()

"""A round makes the same model, bit for bit, whatever the number of threads that work on its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedbus.bus import threads
from fedbus.bus.models import read_manifest
from fedbus.codec.grid import CHUNK_ELEMENTS
from fedbus_aggregator import sums
from fedbus_schemas.messages import Announcement
from support.federation import federation
from support.natsd import Stack
from support.scripted import Scripted

ELEMENTS = 6 * CHUNK_ELEMENTS + 1000


async def answer(worker: Scripted, news: Announcement) -> None:
    rng = np.random.default_rng([news.round, *worker.name.encode()])
    await worker.send(worker.make(news, rng.standard_normal(ELEMENTS, dtype=np.float32), 3))


# The sum depends on the order in which updates come, a median does not.
@pytest.mark.parametrize(("strategy", "names"), [("fedavg", ("a",)), ("median", ("a", "b", "c"))])
async def test_the_width_changes_no_bit(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, names: tuple[str, ...]
) -> None:
    plan: dict[str, Any] = {
        "strategy": strategy,
        "rounds": 3,
        "train": {"elements": ELEMENTS},
        "cohort": {"min": len(names)},
        "close": {"quorum": len(names)},
        "codec": {"up": "ecq", "down": "ecq", "full_every": 100},
    }
    made = []
    async with federation(stack.credentials, tmp_path, workers=()) as parties:
        for name in names:
            await parties.script(name, answer)
        for width in (1, 2, 5):
            monkeypatch.setattr(threads, "WIDTH", width)
            monkeypatch.setattr(sums, "WIDTH", width)
            run = await parties.start(plan, f"width-{strategy}-{width}")
            report = await parties.finished(run)
            manifests = [await read_manifest(parties.operator, round_.model) for round_ in report.rounds]
            model = await parties.model(report.model)
            made.append(([(m.chunks, m.values) for m in manifests], model.tobytes()))
    assert made[1:] == made[:1] * 2
    assert [values is not None for _, values in made[0][0]] == [True, True, False]

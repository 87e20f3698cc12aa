"""The models that a worker keeps as files: downloaded once, checked after a restart, and never many."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from fedbus_worker.models import KEPT, Models
from support.federation import federation
from support.natsd import Stack

ELEMENTS = 600_000  # three chunks
CHUNKS = 3


async def test_a_model_is_downloaded_once_and_checked_after_a_restart(
    stack: Stack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    steps: list[float] = []

    async with federation(stack.credentials, tmp_path, workers=("w1",)) as parties:
        plan = {"rounds": KEPT + 1, "train": {"elements": ELEMENTS, "value": 1.0}, "cohort": {"min": 1}}
        await parties.start(plan, "model-files")
        digests = [r.model for r in (await parties.finished("model-files")).rounds]
        assert len(set(digests)) == KEPT + 1
        wanted = digests[-1]
        assert wanted
        whole = await parties.model(wanted)

        def held() -> list[str]:
            return sorted(path.stem for path in folder.iterdir())

        first = Models(parties.operator, folder)
        path, table = await first.get(wanted, steps.append)
        assert (len(steps), steps[-1]) == (CHUNKS, 1.0)
        np.testing.assert_array_equal(np.fromfile(path, np.float32), whole)
        assert sum(tensor.size for tensor in table) == ELEMENTS
        assert await first.get(wanted, steps.append) == (path, table)
        assert len(steps) == CHUNKS, "it is at hand"

        (folder / "broken.part").write_bytes(b"half a mo")
        again = Models(parties.operator, folder)
        assert held() == [wanted], "what was broken off is gone"
        assert (await again.get(wanted, steps.append))[1] == table
        assert len(steps) == CHUNKS, "a file of an earlier process holds what its manifest says"
        assert not caplog.records

        for damage in (path.read_bytes()[:-4], b"\1" + path.read_bytes()[1:], b""):
            steps.clear()
            path.write_bytes(damage)
            with caplog.at_level(logging.WARNING):
                await Models(parties.operator, folder).get(wanted, steps.append)
            assert "damaged" in caplog.text
            assert len(steps) == CHUNKS
            np.testing.assert_array_equal(np.fromfile(path, np.float32), whole)
            caplog.clear()

        for digest in digests:
            assert digest
            await again.get(digest, steps.append)
        assert held() == sorted(digest for digest in digests[-KEPT:] if digest)

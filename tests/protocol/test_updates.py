"""Listing what members stored: one that stores too much hides nobody but itself."""

from __future__ import annotations

import pytest
from fedbus.base.clock import random_token
from fedbus.bus import store
from fedbus.bus.lean import LeanLink
from fedbus.bus.store import AnswerTooLarge, list_subjects, put
from fedbus.bus.updates import list_updates
from fedbus_schemas import subjects
from fedbus_schemas.ids import RoundRef
from support.buses import parties
from support.natsd import Stack


@pytest.mark.parametrize("bound", ["count", "bytes"])
async def test_a_flooder_hides_itself_only(
    stack: Stack, bound: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ref = RoundRef(f"flood-{random_token()}", 1)

    def manifest(worker: str, attempt: str) -> str:
        return subjects.update(ref.run, ref.number, worker, "0", attempt, "manifest")

    async with parties(stack, "aggregator", "w-good", "w-bad") as (aggregator, good, bad):
        honest = manifest("w-good", "a")
        await put(good, honest, b"x")
        assert await list_updates(aggregator, ref, ["w-good", "w-bad"], "manifest") == [honest]
        for number in range(40):
            await put(bad, manifest("w-bad", f"{number}-{'x' * 100}"), b"x")
        if bound == "count":
            monkeypatch.setattr(store, "MOST_SUBJECTS", 20)
        else:
            assert isinstance(aggregator.link, LeanLink)
            aggregator.link._reader.limit = 5000
        with pytest.raises(AnswerTooLarge):
            await list_subjects(aggregator, subjects.UPDATES, f"fb.update.{ref.run}.>")
        assert await list_updates(aggregator, ref, ["w-good", "w-bad"], "manifest") == [honest]
        assert "w-bad is left out" in caplog.text
        assert aggregator.connected

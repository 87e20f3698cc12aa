"""A round that is over can be made again, bit for bit, from what is stored; or it is said why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fedbus.base.errors import UnknownRun
from fedbus.bus import Message
from fedbus.bus.store import last_seq
from fedbus_schemas import subjects
from support.buses import Ask, Tapped
from support.federation import Parties, federation
from support.natsd import Stack

WORKERS = ("r1", "r2", "r3")
ELEMENTS, ROUNDS = 300_000, 3  # two chunks


class Rotten(Tapped):
    """A connection on which one chunk of each update reads differently, once it is told to."""

    rotten = False

    async def tap(self, subject: str, data: bytes, ask: Ask) -> Message:
        answer = await ask()
        if type(self).rotten and ".fb.update." in subject and subject.endswith(".1"):
            changed = bytearray(answer.data)
            changed[-1] ^= 1
            return answer._replace(data=bytes(changed))
        return answer


async def run_of(parties: Parties, name: str, **plan: Any) -> str:
    """A run of three rounds that is over, with noise so that codecs have something to lose."""
    train = {"elements": ELEMENTS, "spread": 1.0}
    values = {"rounds": ROUNDS, "train": train, "cohort": {"min": 3}, "retain": {"rounds": 10}, **plan}
    run = await parties.start(values, name)
    assert (await parties.finished(run)).state == "finished"
    return run


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("replay-mean", {"codec": {"up": "int8"}}),
        ("replay-median", {"codec": {"up": "dense"}, "strategy": "median"}),
        ("replay-deltas", {"codec": {"up": "ecq", "down": "ecq"}, "rounds": 5}),
        ("replay-small", {"codec": {"up": "dense"}, "train": {"elements": 1000}}),
    ],
)
async def test_the_same_models_come_out(
    stack: Stack, tmp_path: Path, name: str, plan: dict[str, Any]
) -> None:
    async with federation(stack.credentials, tmp_path, workers=WORKERS) as parties:
        run = await run_of(parties, name, **plan)
        stored = await last_seq(parties.operator, subjects.MODELS)
        for number in (*range(plan.get("rounds", ROUNDS) + 1), 2):  # in order, and one out of order
            found = await parties.api.replay(run, number)
            assert (found.code, found.again) == ("equal", found.model), found.reason
            assert found.updates == (3 if number else 1)
        assert await last_seq(parties.operator, subjects.MODELS) == stored, "nothing is stored"


async def test_an_update_that_changed_in_storage_is_named(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=WORKERS) as parties:
        await parties.aggregator.stop()
        await parties.aggregator.start(Rotten)
        run = await run_of(parties, "replay-rotten")
        Rotten.rotten = True
        try:
            found = await parties.api.replay(run, 2)
        finally:
            Rotten.rotten = False
        assert (found.code, found.again) == ("different", None)
        assert found.reason.startswith("the update of r")
        assert "SHA-256 is" in found.reason
        assert (await parties.api.replay(run, 2)).code == "equal"


async def test_what_cannot_be_made_again_says_why(stack: Stack, tmp_path: Path) -> None:
    async with federation(stack.credentials, tmp_path, workers=WORKERS) as parties:
        run = await run_of(parties, "replay-gone", retain={"rounds": 0})
        found = await parties.api.replay(run, 1)
        assert found.code == "not-retained"
        assert "is not stored any more" in found.reason
        run = await run_of(parties, "replay-chain", codec={"up": "ecq", "down": "ecq"}, retain={"rounds": 1})
        found = await parties.api.replay(run, 2)
        assert found.code == "not-retained"
        assert found.reason.startswith("it builds on replay-chain/1: an update of r")
        with pytest.raises(UnknownRun, match="has no round 9"):
            await parties.api.replay(run, 9)
        with pytest.raises(UnknownRun, match="no run is called"):
            await parties.api.replay("nowhere", 1)

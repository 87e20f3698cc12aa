"""Beats and progress: heard where they are readable and speak of whoever sent them."""

from __future__ import annotations

import pytest
from fedbus.base.clock import random_token
from fedbus.bus.hearing import hear_beats, hear_progress
from fedbus_schemas import subjects
from fedbus_schemas.messages import Beat, Capabilities, Progress
from support.buses import parties, until
from support.natsd import Stack


@pytest.mark.parametrize("service", ["planner", "enroll", "evaluator"])
async def test_a_worker_is_heard_under_its_own_name_only(stack: Stack, service: str) -> None:
    can = Capabilities(tasks=[], codecs=[], cpus=1, memory_mb=1, python="3.11", version="0")
    heard: list[Beat | Progress] = []
    async with parties(stack, service, "w-heard") as (bus, worker):
        await hear_beats(bus, heard.append)
        await hear_progress(bus, heard.append)
        for name in ("w-other", "w-heard"):
            beat = Beat(worker=name, at=1.0, incarnation=random_token(), capabilities=can)
            progress = Progress(worker=name, node="0", run="r", round=1, phase="train", fraction=0.5, at=1.0)
            for subject, said in ((subjects.beat, beat), (subjects.progress, progress)):
                for data in (b"", b"\xff{", said.model_dump_json().encode()):
                    await worker.publish(subject("w-heard"), data)
        await until(lambda: len(heard) >= 2, "both are heard")
        assert heard == [beat, progress]

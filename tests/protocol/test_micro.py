"""Commands: the operator asks, the planner or evaluator answers, errors cross over as themselves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fedbus.base.errors import (
    AuthRefused,
    BusUnavailable,
    FedbusError,
    PlanRefused,
    RemoteContractError,
    UnknownRun,
)
from fedbus.bus import Bus
from fedbus.bus.micro import Verb, ask, serve
from fedbus_schemas import subjects
from fedbus_schemas.base import Wire
from fedbus_schemas.messages import AskWaiting, Waiting
from support.buses import buses, parties, until
from support.natsd import Stack, broker

HINT = "look there"


async def waiting(data: bytes) -> Wire:
    """Answers, or fails in the way that the run's name says."""
    run = AskWaiting.model_validate_json(data).run
    if run == "refused":
        raise PlanRefused("plan refused: why", hint=HINT)
    if run == "unknown":
        raise UnknownRun("no run is called so")
    if run == "bug":
        raise ZeroDivisionError("a bug")
    if run == "other":
        return AskWaiting(run="something-else")
    return Waiting(code="quorum", reason=f"{run} waits")


VERBS: dict[str, Verb] = {"waiting": waiting}


def ask_for(bus: Bus, run: str, service: str = "planner") -> asyncio.Task[Waiting]:
    return asyncio.create_task(ask(bus, service, "waiting", AskWaiting(run=run), Waiting, 5.0))


async def served(bus: Bus) -> Waiting:
    """Ask until the service answers."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await ask_for(bus, "r")
            except BusUnavailable:
                await bus.wait_up()
                await asyncio.sleep(0.01)


async def test_commands_and_errors_go_across(stack: Stack) -> None:
    async with parties(stack, "planner", "evaluator", "operator") as (planner, evaluator, operator):
        for service in (planner, evaluator):
            await serve(service, service.credentials.name, VERBS)
            await service.flush()
        for name in ("planner", "evaluator"):
            assert await ask_for(operator, "r", name) == Waiting(code="quorum", reason="r waits")
        with pytest.raises(PlanRefused) as refused:
            await ask_for(operator, "refused")
        assert type(refused.value) is PlanRefused
        assert (refused.value.message, refused.value.hint) == ("plan refused: why", HINT)
        assert (refused.value.code, refused.value.exit_code) == ("plan-refused", 30)
        with pytest.raises(UnknownRun) as unknown:
            await ask_for(operator, "unknown")
        assert (unknown.value.hint, unknown.value.exit_code) == (None, 30)
        with pytest.raises(FedbusError, match="ZeroDivisionError: a bug") as bug:
            await ask_for(operator, "bug")
        assert type(bug.value) is FedbusError
        with pytest.raises(RemoteContractError, match="something else"):
            await ask_for(operator, "other")
        # A request that breaks its schema is answered, with the field's name.
        with pytest.raises(RemoteContractError, match="run"):
            await ask(operator, "planner", "waiting", Waiting(), Waiting)
        # After all of this it still serves, and the ordinary tools see it.
        assert (await ask_for(operator, "r")).reason == "r waits"
        listed = json.loads((await operator.request("$SRV.INFO.planner")).data)
        assert [each["subject"] for each in listed["endpoints"]] == [subjects.api("planner", "waiting")]
        counted = json.loads((await operator.request(f"$SRV.STATS.planner.{listed['id']}")).data)
        (endpoint,) = counted["endpoints"]
        assert (endpoint["num_requests"], endpoint["num_errors"]) == (7, 4)
        assert 0 < endpoint["average_processing_time"] < endpoint["processing_time"]
        assert json.loads((await operator.request("$SRV.PING")).data)["name"] in ("planner", "evaluator")


async def test_a_service_that_does_not_run(stack: Stack) -> None:
    async with parties(stack, "operator") as (operator,):
        with pytest.raises(BusUnavailable, match="the planner does not answer") as absent:
            await ask_for(operator, "r")
        assert absent.value.hint == "start it: fedbus up, or python -m fedbus_planner"


async def test_a_service_that_cannot_reach_the_broker_now_is_asked_again_where_that_does_no_harm(
    stack: Stack,
) -> None:
    asked = []

    async def busy(data: bytes) -> Wire:
        asked.append(data)
        if len(asked) % 2:
            raise BusUnavailable("nobody serves $JS.API.INFO")
        return Waiting(reason="now it can")

    async with parties(stack, "planner", "operator") as (planner, operator):
        await serve(planner, "planner", {"waiting": busy})
        await planner.flush()
        question = AskWaiting(run="r")
        again = ask(operator, "planner", "waiting", question, Waiting, patience_s=20.0, repeatable=True)
        assert (await again).reason == "now it can"
        with pytest.raises(BusUnavailable, match="INFO"):
            await ask(operator, "planner", "waiting", question, Waiting, patience_s=20.0)
        assert len(asked) == 3


async def test_who_may_ask_and_who_may_answer(stack: Stack) -> None:
    async with parties(stack, "enroll", "aggregator", "planner", "w-api", "operator") as made:
        enroll, aggregator, planner, worker, operator = made
        for party in (enroll, aggregator, planner, worker):
            with pytest.raises(AuthRefused):
                await ask_for(party, "r")
        # Nobody takes another's place.
        with pytest.raises(AuthRefused, match=r"fb\.api\.enroll"):
            await serve(aggregator, "enroll", VERBS)
        with pytest.raises(AuthRefused, match=r"fb\.api\.planner"):
            await serve(worker, "planner", VERBS)
        for service in ("aggregator", "planner"):
            with pytest.raises(BusUnavailable, match="does not answer"):
                await ask_for(operator, "r", service)


async def test_it_answers_again_after_the_broker_was_killed(tmp_path: Path) -> None:
    async with (
        broker(tmp_path) as own,
        buses(own.credentials("planner"), own.credentials("operator")) as (planner, operator),
    ):
        await serve(planner, "planner", VERBS)
        await planner.flush()
        assert (await ask_for(operator, "r")).code == "quorum"
        own.kill()
        await until(lambda: not operator.connected, "the broker is gone")
        with pytest.raises(BusUnavailable, match="not connected"):
            await ask_for(operator, "r")
        question = AskWaiting(run="r")
        asking = asyncio.create_task(
            ask(operator, "planner", "waiting", question, Waiting, patience_s=30.0, repeatable=True)
        )
        await asyncio.to_thread(own.restart)
        assert (await asking).reason == "r waits", "what may be sent twice is asked again"
        await operator.wait_up()
        assert (await served(operator)).reason == "r waits"
        with pytest.raises(PlanRefused):
            await ask_for(operator, "refused")

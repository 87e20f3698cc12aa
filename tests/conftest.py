"""The test suite's ground rules: coroutine tests, layer markers, one real broker, and no silent skips."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fedbus.base.settings import OTEL_VARIABLES, VARIABLES
from fedbus.bus.credentials import Credentials
from fedbus.runtime.broker import Broker
from hypothesis import settings
from support.natsd import Stack
from support.processes import leftovers

TESTS = Path(__file__).parent
LAYERS = ("unit", "protocol", "integration", "chaos", "e2e")
ASYNC_TIMEOUT_S = 60.0

settings.register_profile("fedbus", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fedbus")


def pytest_configure(config: pytest.Config) -> None:
    # A developer's shell must not steer the tests; which server to test with may be chosen.
    for name in {*VARIABLES, *OTEL_VARIABLES} - {"FEDBUS_NATS_SERVER"}:
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = item.path.relative_to(TESTS).parts[0]
        if layer not in LAYERS:
            raise pytest.UsageError(f"{item.path}: tests live in one of tests/{{{','.join(LAYERS)}}}")
        item.add_marker(layer)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(_in_time(pyfuncitem.obj(**arguments)))
    return True


async def _in_time(test: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(ASYNC_TIMEOUT_S):
        await test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    return _no_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _no_skip((yield))


def _no_skip(report: Any) -> Any:
    """In CI a test that does not run is a failure: the missing component must be put there."""
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No broker outlives the session."""
    mark = str(tmp_path_factory.getbasetemp())
    yield
    deadline = time.monotonic() + 10.0
    while (left := leftovers("nats-server", mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The session's broker. Tests share it: name runs and workers apart, and never kill it."""
    with Broker(tmp_path_factory.mktemp("session") / "stack") as broker:
        yield Stack(broker)


@pytest.fixture
def credentials(stack: Stack) -> Callable[[str], Credentials]:
    """Credentials by name on the session's broker: a service, `operator`, or any name for a worker."""
    return stack.credentials

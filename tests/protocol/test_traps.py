"""What the package never calls: each is a trap of nats-py 2.16 that no test of behaviour can rule out."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from fedbus.bus.stock import StockLink
from support.buses import buses
from support.natsd import Stack

ROOT = Path(__file__).parents[2]
PACKAGES = ("core/fedbus", "services", "worker")
# The one place that may hold nats-py.
EDGE = ROOT / "core/fedbus/bus"

CALLS = {
    "publish_async": "1: futures of what is in flight never end after a broken connection",
    "publish_async_completed": "1: it waits for futures that never end",
    "fetch": "5: it returns early, times out late, and hides a deleted consumer",
    "pull_subscribe": "5 and 6: pulls, slow without a time-out and blind to their consumer's end",
    "pull_subscribe_bind": "5 and 6: as pull_subscribe",
    "jetstream": "8 and 9: its publish changes the caller's headers, its ordered consumer resets once",
    "add_consumer": "9: a consumer per reader takes 21 s to come back after a kill at 5,000 of them",
    "object_store": "10: reading is quadratic, without resume or window",
    "create_object_store": "10: as object_store",
    "key_value": "9: watching a bucket is an ordered consumer",
    "drain": "11: it waits up to 30 s for callbacks, and may raise after that",
    "request_many": "4: collects through a subscription with a limit",
}
ARGUMENTS = {
    "ordered_consumer": "9: one try to begin anew, then silence",
    "msg_ttl": "8: cut to whole seconds, and written into the caller's headers",
    "reconnected_cb": "3: nats-py's reconnecting is off; a callback of it never runs",
}
TEXTS = {
    "Nats-Msg-Id": "ids are stream-wide, so another worker could claim ours",
    "ws://": "13: nats-py's websocket queues without bound",
    "wss://": "13: as ws://",
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(), str(path))


def called(tree: ast.Module) -> Iterator[ast.Call]:
    """Every call but those of `super()`: the stream under nats-py has a `drain` of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            on = node.func.value if isinstance(node.func, ast.Attribute) else None
            if not (isinstance(on, ast.Call) and name_of(on) == "super"):
                yield node


def name_of(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def docstrings(tree: ast.Module) -> set[int]:
    """Where prose stands: it may name what the code avoids."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def test_there_is_something_to_scan() -> None:
    paths = {path for path, _ in sources()}
    assert EDGE / "connection.py" in paths
    assert any("fedbus_aggregator" in path.parts for path in paths)
    assert any("fedbus_worker" in path.parts for path in paths)


@pytest.mark.parametrize("name", CALLS)
def test_never_called(name: str) -> None:
    found = [
        f"{path}:{call.lineno}" for path, tree in sources() for call in called(tree) if name_of(call) == name
    ]
    assert found == [], f"trap {CALLS[name]}"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_never_given(name: str) -> None:
    found = [
        f"{path}:{call.lineno}"
        for path, tree in sources()
        for call in called(tree)
        if any(keyword.arg == name for keyword in call.keywords)
    ]
    assert found == [], f"trap {ARGUMENTS[name]}"


@pytest.mark.parametrize("text", TEXTS)
def test_never_written(text: str) -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and text.lower() in node.value.lower()
        and id(node) not in docstrings(tree)
    ]
    assert found == [], f"trap {TEXTS[text]}"


def test_only_the_bus_imports_nats() -> None:
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] in ("nats", "nkeys") for name in names) and EDGE not in path.parents:
                found.append(str(path))
    assert found == []


def test_nats_py_is_pinned() -> None:
    """`stock` stands on its private names."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"nats-py=={version('nats-py')}" in wanted


async def test_callbacks_are_set_and_reconnecting_is_off(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traps 12 and 14: the default `error_cb` logs a traceback a try, and a callback must be a coroutine."""
    monkeypatch.setenv("FEDBUS_CLIENT", "nats-py")
    async with buses(stack.credentials("operator")) as (operator,):
        assert isinstance(operator.link, StockLink)
        client = operator.link.client
        for callback in (client._error_cb, client._closed_cb):
            assert inspect.iscoroutinefunction(callback)
            assert callback.__module__ == "fedbus.bus.stock"
        assert client.options["allow_reconnect"] is False

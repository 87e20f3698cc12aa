"""Plug-ins by name: dropping in a file is all it takes, and every mistake is answered clearly."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from fedbus.base.errors import PlanRefused, UnknownName
from fedbus.base.registry import Registry
from pydantic import BaseModel, ConfigDict

PLUGIN = """
from typing import ClassVar
from {package} import registry

@registry.register
class Plugin:
    name: ClassVar[str] = "{name}"
"""


class Plain:
    name: ClassVar[str] = "plain"


class Tuned:
    name: ClassVar[str] = "tuned"

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid")
        rate: float = 0.5

    def __init__(self, params: Params) -> None:
        self.rate = params.rate


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """An importable package that holds a registry and no plug-in yet."""
    folder = tmp_path / f"plugins_{abs(hash(request.node.name))}"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from fedbus.base.registry import Registry\nregistry = Registry('flavours', {folder.name!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.startswith(folder.name)]:
        del sys.modules[name]


def _registry(package: Path) -> Registry[object]:
    made: Registry[object] = __import__(package.name).registry
    return made


def _write(package: Path, file: str, name: str) -> None:
    (package / file).write_text(PLUGIN.format(package=package.name, name=name))


def test_a_file_in_the_package_is_found(package: Path) -> None:
    _write(package, "sweet.py", "sweet")
    _write(package, "sour.py", "sour")
    assert _registry(package).names() == ["sour", "sweet"]
    assert type(_registry(package).build("sour", {})).__name__ == "Plugin"


def test_a_plugin_that_cannot_be_imported_is_an_error_each_time(package: Path) -> None:
    (package / "broken.py").write_text("import no_such_module_anywhere\n")
    _write(package, "sweet.py", "sweet")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            _registry(package).get("sweet")
    (package / "broken.py").write_text("")
    assert _registry(package).names() == ["sweet"]


def test_two_plugins_of_one_name_are_an_error(package: Path) -> None:
    _write(package, "a.py", "sweet")
    _write(package, "b.py", "sweet")
    with pytest.raises(ValueError, match="two flavours are called 'sweet'"):
        _registry(package).names()


def test_an_entry_point_of_an_outside_package_is_found(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(package, "inside.py", "inside")
    point = importlib.metadata.EntryPoint("outside", f"{__name__}:Plain", "fedbus.flavours")

    def points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "fedbus.flavours" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    assert _registry(package).names() == ["inside", "plain"]


@pytest.fixture
def flavours(package: Path) -> Registry[object]:
    registry = _registry(package)
    registry.register(Plain)
    registry.register(Tuned)
    return registry


def test_an_unknown_name_is_answered_with_the_nearest_and_all(flavours: Registry[object]) -> None:
    with pytest.raises(UnknownName) as caught:
        flavours.get("tunde")
    assert caught.value.message == "unknown flavour 'tunde'; did you mean 'tuned'?"
    assert caught.value.hint == "known flavours: plain, tuned"
    with pytest.raises(UnknownName, match=r"^unknown flavour 'zzz'$"):
        flavours.get("zzz")


def test_parameters_are_checked_by_the_plugin(flavours: Registry[object]) -> None:
    made = flavours.build("tuned", {"rate": 0.1})
    assert isinstance(made, Tuned)
    assert made.rate == 0.1
    with pytest.raises(PlanRefused, match=r"^tuned: rat: unknown key; did you mean 'rate'\?$"):
        flavours.build("tuned", {"rat": 0.1})
    with pytest.raises(PlanRefused, match=r"^tuned: rate: Input should be a valid number"):
        flavours.build("tuned", {"rate": "x"})
    with pytest.raises(PlanRefused, match=r"^plain takes no parameters, got a, b$"):
        flavours.build("plain", {"b": 1, "a": 1})


@pytest.mark.parametrize(("kind", "one"), [("strategies", "strategy"), ("codecs", "codec")])
def test_kinds_are_named_in_the_singular(kind: str, one: str, package: Path) -> None:
    registry: Registry[object] = Registry(kind, package.name)
    with pytest.raises(UnknownName, match=f"^unknown {one} 'zzz'$"):
        registry.get("zzz")

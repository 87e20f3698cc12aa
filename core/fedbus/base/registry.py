"""Plug-ins by name: one new file in a package, or an entry point of an outside package.

A registry imports every module of its package on first look-up, so that dropping in a
file is all it takes. An outside package declares an entry point in the group
`fedbus.<kind>`, for example `[project.entry-points."fedbus.strategies"]`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from fedbus.base.errors import PlanRefused, UnknownName, describe, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named classes of one kind. Each carries `name` and may carry pydantic `Params`."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._found: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, cls: type[T]) -> type[T]:
        """Class decorator: add a plug-in under its `name`."""
        name: str = cls.name  # type: ignore[attr-defined]  # checked by the laws, not by a base class
        if self._found.setdefault(name, cls) is not cls:
            raise ValueError(f"two {self.kind} are called {name!r}")
        return cls

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._found)

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            UnknownName: there is none; the message names the nearest.
        """
        self._load()
        try:
            return self._found[name]
        except KeyError:
            close = nearest(name, self._found)
            raise UnknownName(
                f"unknown {_singular(self.kind)} {name!r}" + (f"; did you mean {close!r}?" if close else ""),
                hint=f"known {self.kind}: {', '.join(sorted(self._found))}",
            ) from None

    def build(self, name: str, params: dict[str, Any]) -> T:
        """Make the plug-in, its parameters validated by its own `Params`.

        Raises:
            UnknownName: no such plug-in.
            PlanRefused: a parameter is unknown or wrong.
        """
        cls = self.get(name)
        model: type[BaseModel] | None = getattr(cls, "Params", None)
        if model is None:
            if params:
                raise PlanRefused(f"{name} takes no parameters, got {', '.join(sorted(params))}")
            return cls()
        try:
            made: Callable[..., T] = cls
            return made(model.model_validate(params))
        except ValidationError as error:
            raise PlanRefused(f"{name}: {describe(error, model.model_fields)}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in importlib.metadata.entry_points(group=f"fedbus.{self.kind}"):
            self.register(point.load())
        # Last, so that a plug-in which cannot be imported is an error each time, not an unknown name.
        self._loaded = True


def _singular(kind: str) -> str:
    return kind.removesuffix("ies") + "y" if kind.endswith("ies") else kind.removesuffix("s")

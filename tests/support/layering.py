"""The import arrow and the house rules, read off the source with `ast`. Nothing is imported.

schemas    base
   \\       /
    pure: rounds selection strategies codec privacy topology tasks
    bus telemetry  ->  runtime  ->  api  ->  cli
    shells: fedbus_enroll fedbus_planner fedbus_aggregator fedbus_evaluator fedbus_worker
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_FILE = 400
SHELLS = ("fedbus_enroll", "fedbus_planner", "fedbus_aggregator", "fedbus_evaluator", "fedbus_worker")
PURE = ("rounds", "selection", "strategies", "codec", "privacy", "topology", "tasks")
_BELOW_BUS = ("base", *PURE)
# What of `fedbus` a part of `fedbus` may import beside itself; the schemas are open to all.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "": ("tasks", "api"),  # fedbus/__init__.py: the names that users import
    "base": (),
    **dict.fromkeys(PURE, _BELOW_BUS),
    "bus": _BELOW_BUS,
    "telemetry": (*_BELOW_BUS, "bus"),
    "runtime": (*_BELOW_BUS, "bus", "telemetry"),
    "api": (*_BELOW_BUS, "bus", "telemetry", "runtime"),
    "cli": (*_BELOW_BUS, "bus", "telemetry", "runtime", "api"),
}
SHELLS_MAY_IMPORT = (*_BELOW_BUS, "bus", "telemetry", "runtime")
# An event loop, a clock, the network, another process: none of them belongs where decisions are made.
NOT_PURE = (
    "asyncio",
    "nats",
    "time",
    "secrets",
    "uuid",
    "socket",
    "subprocess",
    "threading",
    "signal",
    "select",
)
ASKS = {
    "os": ("environ", "environb", "getenv", "putenv", "urandom", "times"),
    "datetime": ("now", "utcnow", "today"),
    "date": ("today",),
}
SEEDED_ONLY = ("Random", "seed")  # of `random`; the rest of it draws from a hidden, shared state
NUMPY_RANDOM = ("Generator", "RandomState", "default_rng", "SeedSequence", "PCG64", "Philox", "seed")


# A file that is run as a script, as the trainer child is, finds its neighbours before the standard library.
# `chunk` read IFF files; it was deprecated in 3.11 and is gone from 3.13.
TAKEN_NAMES = sys.stdlib_module_names - {"chunk"}


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    path: Path
    name: str  # dotted
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def part(self) -> str:
        """Of `fedbus`: base, rounds, … and "" for the package itself; of a shell: its module."""
        return self.name.partition(".")[2].partition(".")[0]

    @property
    def pure(self) -> bool:
        return self.package == "fedbus" and self.part in PURE

    @property
    def shell(self) -> bool:
        return self.package in SHELLS


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and whether importing the file imports it."""

    name: str
    line: int
    eager: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def complaints(root: Path) -> list[str]:
    """Every breach of a rule below a repository's root, as `file:line: what`."""
    return [*_packaging(root), *(c for module in modules(root) for c in module_complaints(module, root))]


def package_folders(root: Path) -> list[Path]:
    """Source packages: the folders that hold a top-level `__init__.py`."""
    found = [p.parent for p in root.glob("*/fedbus*/__init__.py")]
    found += [p.parent for p in root.glob("services/*/fedbus*/__init__.py")]
    return sorted(found)


def modules(root: Path) -> Iterator[Module]:
    """All modules of all packages."""
    for folder in package_folders(root):
        for path in sorted(folder.rglob("*.py")):
            yield read(path, folder, path.read_text())


def read(path: Path, folder: Path, text: str) -> Module:
    """One module of the package in `folder`, with any text."""
    parts = path.relative_to(folder.parent).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(path, name, ast.parse(text, str(path)), len(text.splitlines()))


def imports(module: Module) -> Iterator[Import]:
    """Everything that a module imports, anywhere in it; relative names made absolute."""
    yield from _imports(module, module.tree, eager=True)


def _imports(module: Module, node: ast.AST, *, eager: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = module.name.split(".")
        if module.path.name != "__init__.py":
            above = above[:-1]
        above = above[: len(above) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        # `from fedbus import bus` imports fedbus.bus; a name that is no module does no harm here.
        yield from (Import(f"{base}.{alias.name}", node.lineno, eager) for alias in node.names)
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        yield from _imports(module, child, eager=eager and not lazy and not typing_only)


def module_complaints(module: Module, root: Path) -> Iterator[str]:
    """Every breach in one file."""
    where = module.path.relative_to(root)
    if module.lines > LONGEST_FILE:
        yield f"{where}:{module.lines}: longer than {LONGEST_FILE} lines"
    for name in {module.path.stem, module.path.parent.name} & TAKEN_NAMES:
        yield f"{where}:1: {name} is called like a module of the standard library"
    for found in imports(module):
        reason = _ours(module, found) or _foreign(module, found)
        if reason:
            yield f"{where}:{found.line}: {reason}"
    yield from (f"{where}:{line}: {reason}" for line, reason in _asks(module))


def _ours(module: Module, found: Import) -> str | None:
    if found.top == "fedbus_schemas" or not found.top.startswith("fedbus"):
        return None
    if module.package == "fedbus_schemas":
        return f"schemas import nothing of ours, but {found.name}"
    if found.top in SHELLS:
        return None if found.top == module.package else f"only {found.top} may import {found.name}"
    part = found.name.partition(".")[2].partition(".")[0]
    if module.shell:
        known = part in SHELLS_MAY_IMPORT or part not in MAY_IMPORT
        return None if known else f"a shell may not import {found.name}"
    known = part == module.part or part in MAY_IMPORT.get(module.part, ()) or part not in MAY_IMPORT
    return None if known else f"{module.part or 'fedbus'} may not import {found.name}"


def _foreign(module: Module, found: Import) -> str | None:
    top, part = found.top, f"{module.package}.{module.part}"
    if top == "nats" and part != "fedbus.bus":
        return "only fedbus.bus imports nats"
    if top == "blosc2" and module.name != "fedbus.codec.blosc":
        return "only fedbus.codec.blosc imports blosc2"
    if top in ("torch", "sklearn", "torchvision"):
        if found.eager:
            return f"{top} is imported with the module; import it in the function that needs it"
        if module.name != "fedbus.tasks.torch_task" and not module.name.startswith("fedbus_worker.tasks"):
            return f"{top} is for tasks"
    if (module.pure or module.package == "fedbus_schemas") and top in NOT_PURE:
        return f"{top} does not belong into pure code"
    if part == "fedbus.base" and top in ("asyncio", "threading", "socket", "subprocess"):
        return f"base does no I/O, but imports {top}"
    services = module.shell and module.package != "fedbus_worker"
    if (services or part == "fedbus.api") and top in ("time", "uuid", "secrets"):
        return f"the clock, chance and ids are handed in; {top} is not asked"
    return None


def _asks(module: Module) -> Iterator[tuple[int, str]]:
    """Uses of hidden state: the environment, the wall clock, the shared random generators."""
    decides = module.pure or module.package == "fedbus_schemas"
    careful = decides or (module.shell and module.package != "fedbus_worker")
    careful = careful or (module.package == "fedbus" and module.part in ("bus", "api"))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if careful and node.attr in ASKS.get(owner.rsplit(".", 1)[-1], ()):
                yield node.lineno, f"{owner}.{node.attr} asks the machine; let it be handed in"
            if decides and owner == "random" and node.attr not in SEEDED_ONLY:
                yield node.lineno, f"random.{node.attr} draws from a shared generator"
            if owner in ("np.random", "numpy.random") and node.attr not in NUMPY_RANDOM:
                yield node.lineno, f"{owner}.{node.attr} draws from a shared generator"
        elif isinstance(node, ast.ImportFrom) and careful and node.module in ("os", "random"):
            banned = ASKS["os"] if node.module == "os" else None
            for name in [a.name for a in node.names if banned is None or a.name in banned]:
                if name not in SEEDED_ONLY:
                    yield node.lineno, f"{node.module}.{name} asks the machine; let it be handed in"
        elif isinstance(node, ast.Call) and careful and not node.args and not node.keywords:
            called = ast.unparse(node.func)
            if called.endswith(("default_rng", "RandomState", "random.Random")):
                yield node.lineno, f"{called}() has no seed"


def _packaging(root: Path) -> Iterator[str]:
    folders = [folder.relative_to(root) for folder in package_folders(root)]
    for folder in folders:
        if not (root / folder / "py.typed").is_file():
            yield f"{folder}: no py.typed"
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages, sources = build["targets"]["wheel"]["packages"], build["dev-mode-dirs"]
    if sorted(packages) != sorted(map(str, folders)):
        yield f"pyproject.toml: packages are {sorted(packages)}, the folders {sorted(map(str, folders))}"
    if sorted(sources) != sorted({str(folder.parent) for folder in folders}):
        yield f"pyproject.toml: dev-mode-dirs are {sorted(sources)}, which is not where the packages are"

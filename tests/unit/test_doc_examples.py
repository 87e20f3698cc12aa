"""The examples of the documentation do what is said of them."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fedbus.base.errors import ChunkRefused, PlanRefused, UnknownName
from fedbus.base.registry import Registry
from fedbus.codec import Codec, codecs
from fedbus.rounds.admission import admit, read_plan
from fedbus.selection import Selection, selections
from fedbus.strategies import Columnwise, strategies
from fedbus.tasks import partition, vector
from fedbus.tasks.load import load_class
from fedbus.tasks.params import build_params, build_task
from fedbus.tasks.resident import Resident
from fedbus.tasks.task import Partition, Site
from support.docs import ROOT, example, fences

Run = Callable[[str, str, str], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example as a module: page, file that it names, module's name."""

    def run_it(page: str, path: str, name: str) -> None:
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(example(page, path), path, "exec"), vars(module))

    return run_it


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example registers is forgotten afterwards."""
    for registry in (strategies, codecs, selections):
        registry.names()
        monkeypatch.setattr(registry, "_found", dict(registry._found))


@pytest.mark.usefixtures("plugins")
def test_the_strategy_example_works(run: Run) -> None:
    run("CONTRIBUTING.md", "core/fedbus/strategies/damped.py", "fedbus.strategies.damped")
    made = strategies.build("damped", {"rate": 0.5})
    assert not isinstance(made, Columnwise)
    updates = {1.0: [2.0, 4.0, 6.0], 3.0: [-2.0, 0.0, 2.0]}
    for _ in range(2):  # a second round begins afresh
        made.start(3)
        for weight, values in updates.items():
            made.add(0, np.array(values[:2], np.float32), weight)
            made.add(2, np.array(values[2:], np.float32), weight)
            made.counted(weight)
        out = np.empty(3, np.float32)
        made.finish(0, out)
        expected = 0.5 * np.average(list(updates.values()), axis=0, weights=list(updates))
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    admit(read_plan({"task": "noop", "strategy": {"name": "damped", "rate": 0.5}}))
    for wrong in ({"rate": 2.0}, {"rat": 0.5}):
        with pytest.raises(PlanRefused, match="damped: rat"):
            strategies.build("damped", wrong)


@pytest.mark.usefixtures("plugins")
def test_the_codec_example_keeps_the_laws(run: Run) -> None:
    run("CONTRIBUTING.md", "core/fedbus/codec/fp24.py", "fedbus.codec.fp24")
    made: Codec = codecs.build("fp24", {})
    chance = np.random.default_rng(0)
    x = (chance.standard_normal(5001) * np.exp2(chance.integers(-140, 120, 5001))).astype(np.float32)
    x[:3] = [0.0, np.finfo(np.float32).max, -np.finfo(np.float32).max]
    body, blosc = made.encode(x)
    assert len(body) == 3 * len(x)
    out = np.empty_like(x)
    made.decode(memoryview(body), blosc, out)
    assert (np.abs(out.astype(np.float64) - x) <= made.bound(x)).all()
    for broken in (body[:-1], body + b"x", b""):
        with pytest.raises(ChunkRefused):
            made.decode(memoryview(broken), False, out)
    with pytest.raises(ChunkRefused):
        made.decode(memoryview(body), True, out)
    x[0], x[1], x[2] = np.nan, np.inf, -np.inf
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    x = np.concatenate([x, signalling])
    out = np.empty_like(x)
    made.decode(memoryview(made.encode(x)[0]), False, out)
    assert list(np.flatnonzero(~np.isfinite(out))) == [0, 1, 2, len(x) - 1]
    admit(read_plan({"task": "noop", "codec": {"up": "fp24"}}))


@pytest.mark.usefixtures("plugins")
def test_the_selection_example_works(run: Run) -> None:
    run("CONTRIBUTING.md", "core/fedbus/selection/seniority.py", "fedbus.selection.seniority")
    made: Selection = selections.build("seniority", {})
    assert made.choose(["c", "a", "b"], 2, np.random.default_rng(0)) == ["c", "a"]
    admit(read_plan({"task": "noop", "cohort": {"select": "seniority"}}))


def test_the_partitioner_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "halving", None, raising=False)  # both undone afterwards
    monkeypatch.setitem(partition.PARTITIONERS, "halving", partition.iid)
    exec(example("CONTRIBUTING.md", "core/fedbus/tasks/partition.py"), vars(partition))
    parts = partition.split("halving", np.arange(150), 4, seed=3)
    assert [len(part) for part in parts] == [80, 40, 20, 10]
    assert sorted(np.concatenate(parts)) == list(range(150))
    admit(read_plan({"task": "noop", "data": {"partition": "halving", "parts": 4}}))


def test_an_outside_package_is_found_by_its_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toml,) = fences("toml")
    points = re.sub(r'^\[project.entry-points."(.+)"\]$', r"[\1]", toml.text, flags=re.MULTILINE)
    package, metadata = tmp_path / "your_package", tmp_path / "your_package-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: your-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points.replace('"', ""))
    (package / "__init__.py").touch()
    kinds = {"strategies": "damped", "codec": "fp24", "selection": "seniority"}
    for folder, name in kinds.items():
        text = example("CONTRIBUTING.md", f"core/fedbus/{folder}/{name}.py")
        (package / f"{name}.py").write_text(re.sub(r"^@\w+\.register\n", "", text, flags=re.MULTILINE))
    (package / "iris.py").write_text(example("README.md", "iris.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        for registry, name in ((strategies, "damped"), (codecs, "fp24"), (selections, "seniority")):
            again: Registry[Any] = Registry(registry.kind, registry._package)
            # Modules of the package register with the one that exists; a new one knows entry points only.
            assert again.names() == [name]
            assert again.get(name).__module__ == f"your_package.{name}"
            with pytest.raises(UnknownName):
                registry.get(name)
        (point,) = (p for p in importlib.metadata.entry_points(group="fedbus.tasks") if p.name == "iris")
        assert load_class(point.value).__name__ == "Iris"
    finally:
        for module in [name for name in sys.modules if name.split(".")[0] == "your_package"]:
            del sys.modules[module]


# Tasks


def _federated(task: str, params: dict[str, Any], parts: int, rounds: int) -> list[dict[str, float]]:
    """Held-out metrics of each round: every part trains, the mean by examples is taken."""
    sites = [Site(partition=Partition("dirichlet", parts, i, seed=0, alpha=0.5)) for i in range(parts)]
    residents = [Resident(task, params) for _ in sites]
    table, arrays = residents[0].init(7)
    weights = np.zeros(vector.size(table), np.float32)
    vector.flatten(arrays, table, weights)
    scores = []
    for number in range(rounds):
        total, examples = np.zeros_like(weights), 0
        for seed, (resident, site) in enumerate(zip(residents, sites, strict=True)):
            delta = np.empty_like(weights)
            trained = resident.train(
                site, weights, table, seed, number + 1, lambda fraction: None, lambda delta=delta: delta
            )
            total += trained.num_examples * delta
            examples += trained.num_examples
        weights += total / examples
        scores.append(dict(residents[0].evaluate(Site(held_out=True), weights, table).metrics))
    return scores


def test_the_task_of_the_readme_learns(run: Run) -> None:
    run("README.md", "iris.py", "iris")
    plan = next(p for f in fences("yaml") if (p := yaml.safe_load(f.text))["task"] == "iris:Iris")
    scores = _federated(plan["task"], plan["train"], parts=2, rounds=6)
    assert scores[-1]["accuracy"] >= 0.85
    assert scores[-1]["loss"] < scores[0]["loss"]


@pytest.fixture
def own_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "own_task"))
    yield "task:LinearRegression"
    sys.modules.pop("task", None)


def test_the_example_task_converges_to_the_noise(own_task: str) -> None:
    plan = yaml.safe_load((ROOT / "examples" / "own_task" / "plan.yaml").read_text())
    assert plan["task"] == own_task
    scores = _federated(own_task, plan["train"], plan["data"]["parts"], plan["rounds"])
    assert scores[-1]["mse"] < 0.012


def test_the_example_task_reads_the_sites_own_data(own_task: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 2))
    np.savetxt(tmp_path / "data.csv", np.c_[x, x @ [1.0, -2.0] + 0.5], delimiter=",")
    site = Site(data=str(tmp_path))
    made = build_task(load_class(own_task), {"features": 2})
    data = made.load(site)
    assert (data[0].shape, data[1].shape) == ((40, 2), (40,))
    with pytest.raises(ValueError, match="features: the data has 2, got 3"):
        build_task(load_class(own_task), {}).load(site)


def test_the_example_task_checks_its_parameters(own_task: str) -> None:
    cls = load_class(own_task)
    for wrong, said in (
        ({"lr": 0}, "lr: must be above 0"),
        ({"steps": 0}, "at least 1"),
        ({"stpes": 3}, "steps"),
    ):
        with pytest.raises(ValueError, match=said):
            build_params(cls, wrong)

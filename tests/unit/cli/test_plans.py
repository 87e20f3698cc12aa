"""`fedbus plan` and `fedbus completion`: no broker is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from fedbus.cli import main
from fedbus_schemas.plan import Plan


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    done = run("plan", "init", path)
    assert done.exit_code == 0, done.output
    return path


def test_init_writes_a_plan_that_lint_accepts_and_show_repeats(file: Path) -> None:
    assert run("plan", "lint", file).output == f"{file}: nothing wrong found\n"
    told = json.loads(run("plan", "lint", file, "--json").output)
    assert told == {"plan": Plan(task="digits").digest(), "notes": []}
    assert run("plan", "init").output == file.read_text()
    shown = yaml.safe_load(run("plan", "show", file).output)
    assert Plan.model_validate({**shown, "train": {}}) == Plan(task="digits")
    assert shown["train"]["batch_size"] == 16, "the defaults of an installed task are filled in"
    assert json.loads(run("plan", "show", file, "--json", "--set", "rounds=3").output)["rounds"] == 3


def test_init_writes_over_nothing_unless_told(file: Path) -> None:
    file.write_text("mine")
    done = run("plan", "init", file)
    assert (done.exit_code, file.read_text()) == (10, "mine")
    assert "exists already\nhint: --force" in done.output
    assert run("plan", "init", file, "--task", "iris:Iris", "--force").exit_code == 0
    assert "\ntask: iris:Iris " in file.read_text()
    assert "note: iris:Iris is not imported here" in run("plan", "lint", file).output
    assert run("plan", "init", file.parent / "no" / "such").exit_code == 10


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cohort.minimum=3", "cohort.minimum: unknown key; did you mean 'min'?"),
        ("strategy=fedavgg", "did you mean 'fedavg'?"),
        ("codec.up=int9", "did you mean 'int8'?"),
        ("train.epoch=3", "epoch"),
        ("rounds=many", "rounds: "),
        ("close.quorum=5", "close.quorum 5 cannot be met with cohort.min 1 workers"),
        ("data={partition: dirichlett}", "dirichlet"),
    ],
)
def test_lint_says_what_is_wrong(file: Path, setting: str, said: str) -> None:
    done = run("plan", "lint", file, "--set", setting)
    assert done.exit_code == 30
    assert done.output.startswith("error[")
    assert said in done.output
    printed = json.loads(run("plan", "lint", file, "--set", setting, "--json").output)
    assert said in printed["error"]["message"]


def test_files_and_settings_that_are_none(file: Path, tmp_path: Path) -> None:
    assert run("plan", "lint", tmp_path / "missing.yaml").exit_code == 10
    file.write_text("[1, 2")
    assert run("plan", "lint", file).exit_code == 30
    file.write_text("task: noop\n")
    assert run("plan", "lint", file, "--set", "rounds=[1").exit_code == 10
    assert run("plan", "lint", file, "--set", "rounds").exit_code == 10


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_FEDBUS_COMPLETE" in done.output
    assert run("completion", "tcsh").exit_code == 2


def test_a_label_that_yaml_does_not_take_for_text_is_to_be_quoted(file: Path) -> None:
    file.write_text("task: digits\ncohort: {require: {gpu: yes}}\n")
    done = run("plan", "lint", file)
    assert done.exit_code == 30
    assert 'gpu: "yes"' in done.output


@pytest.mark.parametrize("value", ["yes", "3", "'yes'"])
def test_a_label_that_is_set_at_the_prompt_is_text(file: Path, value: str) -> None:
    shown = run("plan", "show", file, "--json", "--set", f"cohort.require.gpu={value}").output
    assert json.loads(shown)["cohort"]["require"] == {"gpu": value.strip("'")}

"""The plan's `train:` section against a task's Params."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from fedbus import TorchTask, TrainingTask
from fedbus.tasks.params import build_params, build_task


class Task(TrainingTask):
    @dataclass(frozen=True)
    class Params:
        needed: int
        rate: float = 0.1
        fast: bool = False
        name: str = "x"
        clip: float | None = None
        sizes: tuple[int, ...] = ()
        pair: tuple[int, str] = (1, "a")
        layers: list[int] = field(default_factory=list)
        weights: dict[str, float] = field(default_factory=dict)
        mode: Literal["a", "b"] = "a"
        either: int | str = 0
        modern: int | None = None
        anything: Any = None


def test_values_become_what_the_annotations_say():
    given = {"needed": 3, "rate": 1, "fast": True, "clip": 2, "sizes": [1, 2], "pair": [5, "b"]}
    given |= {"layers": [4], "weights": {"k": 1}, "mode": "b", "either": "z", "modern": 4, "anything": [None]}
    params = build_params(Task, given)
    assert params == Task.Params(
        needed=3, rate=1.0, fast=True, clip=2.0, sizes=(1, 2), pair=(5, "b"), layers=[4],
        weights={"k": 1.0}, mode="b", either="z", modern=4, anything=[None],
    )  # fmt: skip
    assert isinstance(params.rate, float)
    assert isinstance(params.sizes, tuple)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "needed: missing"),
        ({"needed": 1, "rat": 2}, r"rat: unknown key; did you mean 'rate'\?"),
        ({"needed": 1, "zzzzzz": 2}, "zzzzzz: unknown key; known: needed, rate"),
        ({"needed": 1.0}, r"needed: must be a whole number, got 1\.0 \(a number\)"),
        ({"needed": True}, r"needed: must be a whole number, got True \(true or false\)"),
        ({"needed": 1, "rate": True}, "rate: must be a number, got True"),
        ({"needed": 1, "rate": "fast"}, r"rate: must be a number, got 'fast' \(text\)$"),
        ({"needed": 1, "rate": "1e-5"}, r"rate: must be a number, got '1e-5' \(text\); write 1\.0e-05"),
        ({"needed": 1, "fast": 1}, "fast: must be true or false, got 1"),
        ({"needed": 1, "name": None}, r"name: must be text, got None \(null\)"),
        ({"needed": 1, "clip": "x"}, "clip: must be a number, got 'x'"),
        ({"needed": 1, "sizes": [1, "x"]}, "sizes: must be a whole number, got 'x'"),
        ({"needed": 1, "sizes": 3}, "sizes: must be a list, got 3"),
        ({"needed": 1, "pair": [1]}, "pair: must be a list of 2, got 1"),
        ({"needed": 1, "weights": []}, r"weights: must be a mapping, got \[\]"),
        ({"needed": 1, "mode": "c"}, "mode: must be one of 'a', 'b', got 'c'"),
        ({"rat": 1, "fast": 0}, "rat: .*; needed: missing; fast: must be"),
    ],
)
def test_wrong_values_are_named(given, reason):
    with pytest.raises(ValueError, match=reason):
        build_params(Task, given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"epochs": 0}, "epochs: must be at least 1"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"lr": 0}, "lr: must be above 0"),
        ({"lr": float("nan")}, "lr: must be above 0"),
        ({"momentum": 1.0}, "momentum: must be from 0 to below 1"),
        ({"weight_decay": -1}, "weight_decay: must be at least 0"),
    ],
)
def test_checks_of_torch_params(given, reason):
    with pytest.raises(ValueError, match=reason):
        build_params(TorchTask, given)


def test_a_check_that_names_no_field_gets_the_names_given():
    class Moody(TrainingTask):
        @dataclass(frozen=True)
        class Params:
            size: int = 1

            def __post_init__(self) -> None:
                raise ValueError("not today")

    with pytest.raises(ValueError, match="size: not today"):
        build_params(Moody, {"size": 2})


def test_a_task_is_made_with_its_params():
    assert build_task(Task, {"needed": 5}).params.needed == 5
    with pytest.raises(ValueError, match="none, the task has no parameters"):
        build_task(TrainingTask, {"lr": 1})

"""Which plans are refused at the prompt, and that the reason names the key and the nearest right one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from fedbus.base.errors import FedbusError, PlanRefused, UnknownName
from fedbus.codec.framing import down_codec, sends_deltas
from fedbus.rounds.admission import admit, read_plan
from fedbus_schemas.plan import Plan


def _refusal(values: dict[str, Any]) -> FedbusError:
    with pytest.raises((PlanRefused, UnknownName)) as caught:
        admit(read_plan(values))
    return caught.value


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, ["task: Field required"]),
        ({"task": "digits", "rouds": 3}, ["rouds: unknown key; did you mean 'rounds'?"]),
        ({"task": "digits", "close": {"quorom": 3}}, ["close.quorom: unknown key; did you mean 'quorum'?"]),
        ({"task": "digits", "data": {"partitoin": "iid"}}, ["data.partitoin", "did you mean 'partition'?"]),
        ({"task": "digits", "cohort": {"minn": 3}}, ["cohort.minn: unknown key; did you mean 'min'?"]),
        ({"task": "digits", "model": {"form": "run-1"}}, ["model.form: unknown key; did you mean 'from'?"]),
        ({"task": "digits", "privacy": {"secagg": True}}, ["privacy.secagg: unknown key"]),
        ({"task": "digits", "model": {"init": "task", "from": "run-1"}}, ["model: give either"]),
        ({"task": "digits", "model": {"from": "../etc"}}, ["model.from"]),
        ({"task": "os.system('x')"}, ["task: String should match"]),
        ({"task": "digits", "rounds": 0}, ["rounds: Input should be greater than or equal to 1"]),
        ({"task": "digits", "rounds": 0, "seed": -1}, ["rounds:", "seed:"]),
        ({"task": "digits", "close": {"deadline_s": float("inf")}}, ["close.deadline_s"]),
        ({"task": "digits", "close": {"deadline_s": float("nan")}}, ["close.deadline_s"]),
        ({"task": "digits", "limits": {"mb_per_worker": float("inf")}}, ["limits.mb_per_worker"]),
        ({"task": "digits", "limits": {"mb_per_worker": 1e300}}, ["limits.mb_per_worker"]),
        ({"task": "digits", "train": {"lr": float("nan")}}, ["train: only finite numbers"]),
        ({"task": "digits", "train": {"lr": [float("inf")]}}, ["train: only finite numbers"]),
        ({"task": "digits", "train": {"lr": {1, 2}}}, ["train: only finite numbers"]),
        ({"task": "digits", "codec": {"up": {"name": "int8", "x": float("nan")}}}, ["codec.up.params"]),
        ({"task": "digits", "strategy": {"nam": "fedavg"}}, ["strategy.name"]),
        ({"task": "digits", "retain": "some"}, ["retain"]),
    ],
)
def test_a_wrong_key_or_value_is_named(values: dict[str, Any], says: list[str]) -> None:
    error = _refusal(values)
    assert isinstance(error, PlanRefused)
    assert error.message.startswith("plan refused: ")
    for text in says:
        assert text in error.message


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"strategy": "fedavgg"}, "unknown strategy 'fedavgg'; did you mean 'fedavg'?", "fedavg"),
        (
            {"codec": {"up": "int9"}},
            "unknown codec 'int9'; did you mean 'int8'?",
            "bf16, dense, ecq",
        ),
        ({"codec": {"down": "danse"}}, "unknown codec 'danse'; did you mean 'dense'?", "dense"),
        (
            {"cohort": {"select": "unifrom"}},
            "unknown selection 'unifrom'; did you mean 'uniform'?",
            "uniform",
        ),
        ({"strategy": "zzz"}, "unknown strategy 'zzz'", "fedavg"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    values: dict[str, Any], message: str, hint: str
) -> None:
    error = _refusal({"task": "digits"} | values)
    assert isinstance(error, UnknownName)
    assert error.message == message
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"strategy": {"name": "fedavg", "momentum": 0.9}}, "fedavg takes no parameters, got momentum"),
        ({"data": {"partition": "irid"}}, "no partitioner 'irid'; known: by-label, dirichlet, iid, shards"),
        ({"data": {"parts": 2}, "cohort": {"min": 3}}, "data.parts is 2, but cohort.min is 3"),
        ({"train": {"lrr": 0.1}}, "train: lrr: unknown key; did you mean 'lr'?"),
        ({"train": {"lr": "1e-3"}}, "train: lr: must be a number, got '1e-3' (text); write"),
        ({"train": {"epochs": 1.5}}, "train: epochs: must be a whole number"),
        ({"close": {"quorum": 2}}, "close.quorum 2 cannot be met with cohort.min 1 workers"),
        (
            {"cohort": {"min": 4}, "close": {"quorum": 3, "target": 2}},
            "close.quorum 3 is above close.target 2",
        ),
        ({"close": {"quorum": 0.9, "target": 0.5}}, "close.quorum 0.9 is above close.target 0.5"),
        (
            {"cohort": {"min": 4}, "close": {"quorum": 3, "target": 0.5}},
            "close.quorum 3 is above close.target 0.5, which is 2 of 4 workers",
        ),
        (
            {"strategy": "median", "codec": {"up": "topk"}},
            " of what workers agree on with codec.up topk: most values",
        ),
        (
            {"strategy": "trimmed_mean", "codec": {"up": {"name": "ecq", "step": 4}}},
            "codec.up ecq: most values",
        ),
        ({"strategy": "median", "codec": {"up": "auto"}}, "codec.up auto: most values"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], says: str) -> None:
    assert says in _refusal({"task": "digits"} | values).message


def test_all_that_is_wrong_is_named_at_once() -> None:
    values = {
        "strategy": "fedavgg",
        "codec": {"up": "int9"},
        "data": {"partition": "irid", "parts": 2},
        "cohort": {"min": 3},
        "train": {"lrr": 0.1},
        "close": {"quorum": 5},
    }
    error = _refusal({"task": "digits"} | values)
    assert error.message == (
        "plan refused: unknown strategy 'fedavgg'; did you mean 'fedavg'?; "
        "unknown codec 'int9'; did you mean 'int8'?; "
        "data.partition: no partitioner 'irid'; known: by-label, dirichlet, iid, shards; "
        "data.parts is 2, but cohort.min is 3: each worker needs a part of its own; "
        "train: lrr: unknown key; did you mean 'lr'?; "
        "close.quorum 5 cannot be met with cohort.min 3 workers"
    )
    assert (
        error.hint
        == "known strategies: fedavg, median, trimmed_mean; known codecs: bf16, dense, ecq, eden, int8, topk"
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"strategy": "median"},
        {"strategy": {"name": "trimmed_mean", "trim": 0.3}, "codec": {"up": "ecq"}},
        {"strategy": "median", "codec": {"up": {"name": "eden", "bits": 1}}},
        {"strategy": "fedavg", "codec": {"up": "topk"}},
        {"close": {"target": 0.3}},
        {"close": {"target": 2}},
        {"cohort": {"min": 4}, "close": {"quorum": 3}},
        {"cohort": {"min": 4}, "close": {"quorum": 2, "target": 0.5}},
        {"data": {"partition": "dirichlet", "alpha": 0.3, "parts": 4}, "cohort": {"min": 4}},
        {"train": {"epochs": 1, "lr": 1}},
        {"strategy": {"name": "fedavg"}, "codec": {"up": {"name": "bf16"}, "down": "dense"}},
        {"model": {"from": "run-0001"}},
        {"retain": "all"},
        {"task": "my.module:Task", "train": {"anything": [1, "a", None, {"b": True}]}},
        {"task": "elsewhere", "train": {"unknown": 1}},
    ],
)
def test_what_can_work_is_not(values: dict[str, Any]) -> None:
    admit(read_plan({"task": "digits"} | values))


@pytest.mark.parametrize(
    ("text", "quorum"),
    [("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)],
)
def test_yaml_tells_a_count_from_a_share(text: str, quorum: int | float) -> None:
    plan = read_plan(yaml.safe_load(f"task: digits\ncohort: {{min: 3}}\nclose: {{quorum: {text}}}\n"))
    again = Plan.model_validate_json(plan.model_dump_json(by_alias=True))
    for read in (plan, again):
        assert read.close.quorum == quorum
        assert type(read.close.quorum) is type(quorum)


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "1.5", "true", "'1'", ".inf", ".nan", "[1]", "null"])
def test_what_is_neither_a_count_nor_a_share(text: str) -> None:
    values = yaml.safe_load(f"task: digits\nclose: {{quorum: {text}}}\n")
    assert "close.quorum" in _refusal(values).message


def test_a_task_whose_libraries_the_planner_lacks_is_checked_by_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedbus.rounds.admission.installed", lambda: {"digits": "no_such_package:Task"})
    admit(read_plan({"task": "digits", "train": {"unknown": 1}}))


def test_a_plan_keeps_its_digest_on_the_wire() -> None:
    plan = read_plan({"task": "digits", "train": {"lr": 1e-7, "b": 1.0, "a": [1, None]}, "retain": "all"})
    assert Plan.model_validate_json(plan.model_dump_json(by_alias=True)).digest() == plan.digest()


@pytest.mark.parametrize(
    "codec",
    [
        "eden",
        {"name": "ecq", "error_feedback": False},
        {"name": "topk", "fraction": 0.1, "error_feedback": False},
    ],
)
def test_a_codec_that_loses_much_for_good_carries_no_models(codec: Any) -> None:
    error = _refusal({"task": "digits", "codec": {"down": codec}})
    said = r"codec\.down: \w+ loses \d\d% of weights, and has no error feedback here"
    assert re.search(said, error.message)
    assert error.hint is not None
    assert error.hint.startswith("dense, bf16 and int8 can carry models")
    admit(read_plan({"task": "digits", "codec": {"up": codec}}))


@pytest.mark.parametrize("codec", ["ecq", {"name": "ecq", "step": 4}, "topk"])
def test_a_codec_with_error_feedback_carries_differences(codec: Any) -> None:
    plan = read_plan({"task": "digits", "codec": {"down": codec, "full_every": 3}})
    admit(plan)
    assert sends_deltas(plan.codec.down)
    assert down_codec(plan.codec.down, whole=True).name == "dense"
    assert down_codec(plan.codec.down, whole=False) == plan.codec.down


@pytest.mark.parametrize("often", [1, 101, 2.5])
def test_how_often_a_whole_model_comes_is_bounded(often: Any) -> None:
    with pytest.raises(PlanRefused, match=r"codec\.full_every"):
        read_plan({"task": "digits", "codec": {"down": "ecq", "full_every": often}})


def test_auto_is_for_updates_and_takes_no_parameters() -> None:
    admit(read_plan({"task": "digits", "codec": {"up": "auto"}}))
    error = _refusal({"task": "digits", "codec": {"up": {"name": "auto", "bits": 2}}})
    assert error.message == "plan refused: codec.up: auto takes no parameters, got bits"
    assert "unknown codec 'auto'" in _refusal({"task": "digits", "codec": {"down": "auto"}}).message


@pytest.mark.parametrize("codec", ["dense", "bf16", "int8"])
def test_a_codec_that_loses_little_does(codec: str) -> None:
    plan = read_plan({"task": "digits", "codec": {"down": codec}})
    admit(plan)
    assert not sends_deltas(plan.codec.down)
    assert down_codec(plan.codec.down, whole=True) == plan.codec.down

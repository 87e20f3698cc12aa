"""`plan init` writes every key with its default, and `plan show` a plan as a person writes it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from fedbus.rounds.admission import admit, read_plan
from fedbus.rounds.plantext import commented_plan, plain_plan
from fedbus_schemas.plan import Data, Plan
from pydantic import BaseModel
from support.docs import ROOT


def _paths(values: dict[str, Any], model: type[BaseModel]) -> set[str]:
    found = set()
    for name, value in values.items():
        field = model.model_fields[name]
        found.add(name)
        if isinstance(value, dict) and isinstance(field.default, BaseModel):
            found |= {f"{name}.{inner}" for inner in value}
    return found


def test_it_is_the_defaults() -> None:
    values = yaml.safe_load(commented_plan())
    assert read_plan(values) == Plan(task="digits")
    admit(read_plan(values))


def test_scores_by_the_cohort_are_asked_for_wherever_a_plan_is_shown() -> None:
    """Schema, `plan init`, the example and the README say the same of a default that costs the workers."""
    assert Plan(task="digits").evaluate.federated is False
    assert yaml.safe_load(commented_plan())["evaluate"]["federated"] is False
    example = yaml.safe_load((ROOT / "examples/digits/plan.yaml").read_text())
    assert example["evaluate"] == Plan(task="digits").evaluate.model_dump()
    said = re.search(
        r"`evaluate: \{federated: true\}`.*?off by default", (ROOT / "README.md").read_text(), re.S
    )
    assert said is not None


def test_no_key_is_left_out() -> None:
    values = yaml.safe_load(commented_plan())
    written = _paths(values, Plan)
    for name, field in Plan.model_fields.items():
        if name == "data":
            continue  # it has no default: it stands there as a comment
        assert name in written
        if isinstance(field.default, BaseModel) and name not in ("strategy", "model"):
            assert {f"{name}.{inner}" for inner in type(field.default).model_fields} <= written


def test_the_section_that_stands_there_as_a_comment_works_too() -> None:
    text = re.sub(r"^# (data:|  )", r"\1", commented_plan(), flags=re.M)
    assert read_plan(yaml.safe_load(text)).data == Data()


def test_each_key_says_what_it_means() -> None:
    for line in commented_plan().splitlines():
        key, hash_, meaning = line.removeprefix("# ").partition("#")
        if re.match(r"\s*\w+: \S", key) and not key.startswith("privacy"):
            assert hash_, line
            assert len(meaning) > 5, line


@pytest.mark.parametrize(
    "plan",
    [
        Plan(task="digits"),
        Plan.model_validate(
            {
                "task": "a.b:C",
                "model": {"from": "run-0001"},
                "data": {"partition": "shards", "parts": 2},
                "strategy": {"name": "fedavg"},
                "codec": {"up": {"name": "int8"}},
                "train": {"lr": 0.1, "name": None},
                "retain": "all",
            }
        ),
    ],
)
def test_a_plan_in_plain_words_is_the_same_plan(plan: Plan) -> None:
    values = plain_plan(plan)
    assert read_plan(yaml.safe_load(yaml.safe_dump(values))) == plan
    assert values["strategy"] == "fedavg"
    assert None not in values.values()

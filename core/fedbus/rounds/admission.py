"""Whether a plan can be followed: every check that needs no network, with a reason for each refusal."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from fedbus_schemas.plan import Named, Plan
from pydantic import BaseModel, ValidationError

from fedbus.base.errors import PlanRefused, describe
from fedbus.codec import codecs
from fedbus.codec.auto import AUTO
from fedbus.codec.measure import measure
from fedbus.rounds.close import resolve
from fedbus.selection import selections
from fedbus.strategies import strategies
from fedbus.tasks.load import installed, load_class
from fedbus.tasks.params import build_params
from fedbus.tasks.partition import PARTITIONERS

# Share of the squares of whole weights. int8 loses 0.01 %.
MOST_LOST_OF_A_MODEL = 0.01


def read_plan(values: dict[str, Any]) -> Plan:
    """Check a plan's keys and types.

    Raises:
        PlanRefused: names each wrong key, and the nearest known one.
    """
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise PlanRefused(f"plan refused: {describe(error, _keys(Plan))}") from error


def admit(plan: Plan) -> None:
    """Check a plan's names, their parameters and its sense.

    Raises:
        UnknownName: a strategy, codec or selection does not exist; names the nearest.
        PlanRefused: a combination cannot work.
    """
    strategies.build(plan.strategy.name, plan.strategy.params)
    selections.get(plan.cohort.select)
    _admit_up(plan.codec.up)
    _admit_down(plan.codec.down)
    if plan.data is not None:
        if plan.data.partition not in PARTITIONERS:
            known = ", ".join(sorted(PARTITIONERS))
            raise PlanRefused(
                f"plan refused: data.partition: no partitioner {plan.data.partition!r}; known: {known}"
            )
        if plan.data.parts < plan.cohort.min:
            raise PlanRefused(
                f"plan refused: data.parts is {plan.data.parts}, but cohort.min is {plan.cohort.min}: "
                "each worker needs a part of its own"
            )
    task = installed().get(plan.task)
    if task is not None:
        # A task that is installed on the workers only is checked there, before it trains.
        try:
            build_params(load_class(task), plan.train)
        except ImportError:
            pass  # so is one whose libraries are installed on the workers only
        except (ValueError, LookupError) as error:
            raise PlanRefused(f"plan refused: train: {error}") from error
    _admit_close(plan)


def _admit_up(up: Named) -> None:
    if up.name != AUTO:
        codecs.build(up.name, up.params)
    elif up.params:
        raise PlanRefused(f"plan refused: codec.up: auto takes no parameters, got {', '.join(up.params)}")


def _admit_down(down: Named) -> None:
    weights = np.random.RandomState(0).standard_normal(4096).astype(np.float32)
    lost = measure(codecs.build(down.name, down.params), weights).nmse
    if lost > MOST_LOST_OF_A_MODEL:
        raise PlanRefused(
            f"plan refused: codec.down: {down.name} loses {lost:.0%} of weights; it is for updates only",
            hint="dense, bf16 and int8 can carry models",
        )


def _admit_close(plan: Plan) -> None:
    target, quorum, smallest = plan.close.target, plan.close.quorum, plan.cohort.min
    if isinstance(quorum, int) and quorum > smallest:
        raise PlanRefused(
            f"plan refused: close.quorum {quorum} cannot be met with cohort.min {smallest} workers"
        )
    if type(quorum) is type(target) and quorum > target and "quorum" in plan.close.model_fields_set:
        raise PlanRefused(f"plan refused: close.quorum {quorum} is above close.target {target}")
    if isinstance(quorum, int) and quorum > resolve(target, smallest):
        raise PlanRefused(
            f"plan refused: close.quorum {quorum} is above close.target {target}, "
            f"which is {resolve(target, smallest)} of {smallest} workers"
        )


def _keys(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(field.alias or name)
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= _keys(inner)
    return found

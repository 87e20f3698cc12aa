"""Whether a plan can be followed: every check that needs no network, with a reason for each refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import numpy as np
from fedbus_schemas.plan import Named, Plan
from pydantic import BaseModel, ValidationError

from fedbus.base.errors import PlanRefused, RoundError, UnknownName, describe
from fedbus.codec import codecs
from fedbus.codec.auto import AUTO, TRIED
from fedbus.codec.measure import measure
from fedbus.rounds.close import resolve
from fedbus.rounds.kept import LEAST_KEPT, share_kept
from fedbus.selection import selections
from fedbus.strategies import Columnwise, strategies
from fedbus.tasks.load import installed, load_class
from fedbus.tasks.params import build_params
from fedbus.tasks.partition import PARTITIONERS

_REFUSED = "plan refused: "
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
        raise PlanRefused(_REFUSED + describe(error, _keys(Plan))) from error


def admit(plan: Plan) -> None:
    """Check a plan's names, their parameters and its sense.

    Raises:
        UnknownName: a strategy, codec or selection does not exist; names the nearest.
        PlanRefused: a combination cannot work, or several things are wrong: all of them are named.
    """
    found = list(_refusals(plan))
    if len(found) == 1:
        raise found[0]
    if found:
        said = [error.message.removeprefix(_REFUSED) for error in found]
        hints = [error.hint for error in found if error.hint]
        raise PlanRefused(_REFUSED + "; ".join(said), hint="; ".join(hints) or None)


def _refusals(plan: Plan) -> Iterator[RoundError]:
    """Everything that is wrong with a plan."""
    plugins: list[Callable[[], object]] = [
        partial(strategies.build, plan.strategy.name, plan.strategy.params),
        partial(selections.get, plan.cohort.select),
        partial(_admit_up, plan.codec.up),
        partial(_admit_down, plan.codec.down),
    ]
    known = True
    for check in plugins:
        try:
            check()
        except (UnknownName, PlanRefused) as error:
            known = False
            yield error
    if known:
        yield from _of_pairs(plan)
    for reason in (*_of_data(plan), *_of_training(plan), *_of_closing(plan)):
        yield PlanRefused(_REFUSED + reason)


def _admit_up(up: Named) -> None:
    if up.name != AUTO:
        codecs.build(up.name, up.params)
    elif up.params:
        raise PlanRefused(f"{_REFUSED}codec.up: auto takes no parameters, got {', '.join(up.params)}")


def _admit_down(down: Named) -> None:
    made = codecs.build(down.name, down.params)
    if made.feedback:
        return  # models travel as differences, and what one loses comes with the next
    weights = np.random.RandomState(0).standard_normal(4096).astype(np.float32)
    lost = measure(made, weights).nmse
    if lost > MOST_LOST_OF_A_MODEL:
        raise PlanRefused(
            f"{_REFUSED}codec.down: {down.name} loses {lost:.0%} of weights, and has no error feedback here",
            hint="dense, bf16 and int8 can carry models; ecq and topk with error feedback, as differences",
        )


def _of_pairs(plan: Plan) -> Iterator[PlanRefused]:
    """Plug-ins that exist, and do not go together."""
    made, up = strategies.build(plan.strategy.name, plan.strategy.params), plan.codec.up
    if not isinstance(made, Columnwise):
        return
    # `auto` may take the one that leaves most out.
    kept = share_kept(made, TRIED[0] if up.name == AUTO else up)
    if kept < LEAST_KEPT:
        yield PlanRefused(
            f"{_REFUSED}strategy {plan.strategy.name} keeps {kept:.0%} of what workers agree on "
            f"with codec.up {up.name}: most values of an update are left out, and the middle of zeros is "
            "zero",
            hint="int8, eden, and ecq with a step of 2 or less go with it",
        )


def _of_data(plan: Plan) -> Iterator[str]:
    if plan.data is None:
        return
    if plan.data.partition not in PARTITIONERS:
        known = ", ".join(sorted(PARTITIONERS))
        yield f"data.partition: no partitioner {plan.data.partition!r}; known: {known}"
    if plan.data.parts < plan.cohort.min:
        yield (
            f"data.parts is {plan.data.parts}, but cohort.min is {plan.cohort.min}: "
            "each worker needs a part of its own"
        )


def _of_training(plan: Plan) -> Iterator[str]:
    task = installed().get(plan.task)
    if task is None:
        return  # a task that is installed on the workers only is checked there, before it trains
    try:
        build_params(load_class(task), plan.train)
    except ImportError:
        pass  # so is one whose libraries are installed on the workers only
    except (ValueError, LookupError) as error:
        yield f"train: {error}"


def _of_closing(plan: Plan) -> Iterator[str]:
    target, quorum, smallest = plan.close.target, plan.close.quorum, plan.cohort.min
    unmet = isinstance(quorum, int) and quorum > smallest
    if unmet:
        yield f"close.quorum {quorum} cannot be met with cohort.min {smallest} workers"
    if type(quorum) is type(target) and quorum > target and "quorum" in plan.close.model_fields_set:
        yield f"close.quorum {quorum} is above close.target {target}"
    elif isinstance(quorum, int) and not unmet and quorum > resolve(target, smallest):
        yield (
            f"close.quorum {quorum} is above close.target {target}, "
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

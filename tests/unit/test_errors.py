"""The error tree: codes are stable names, families have their exit code, and errors travel."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from typing import Any

import pytest
from fedbus.base import errors
from fedbus.base.errors import FedbusError, by_code, describe, nearest
from fedbus.bus.store import JetStreamError
from pydantic import BaseModel, ConfigDict, ValidationError


def _tree(root: type[FedbusError]) -> list[type[FedbusError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


OURS = [e for e in _tree(FedbusError) if e.__module__ == errors.__name__]
EXIT = {
    "ConfigError": 10,
    "ContractError": 20,
    "RoundError": 30,
    "CodecError": 40,
    "BusError": 50,
    "EnrolmentError": 60,
    "TaskError": 70,
}
EVERY = pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)


def test_the_module_describes_its_tree() -> None:
    assert len(OURS) > 20
    assert errors.__doc__ is not None
    assert [e.__name__ for e in OURS if e.__name__ not in errors.__doc__] == []


@EVERY
def test_the_docstring_is_the_default_message(kind: type[FedbusError]) -> None:
    assert kind.__doc__
    assert kind().message == str(kind()) == kind.__doc__
    assert kind("x").message == "x"
    assert kind("x").hint is None


@EVERY
def test_an_error_survives_pickle(kind: type[FedbusError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what happened", hint="what to do")))
    assert type(again) is kind
    assert (again.message, again.hint, str(again)) == ("what happened", "what to do", "what happened")


@EVERY
def test_the_code_is_kebab_case_and_leads_back(kind: type[FedbusError]) -> None:
    code = kind().code
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
    assert code.replace("-", "") == kind.__name__.lower()
    again = by_code(code, "message", "hint")
    assert type(again) is kind
    assert (again.message, again.hint) == ("message", "hint")


@EVERY
def test_the_exit_code_is_that_of_the_family(kind: type[FedbusError]) -> None:
    families = [EXIT[base.__name__] for base in kind.__mro__ if base.__name__ in EXIT]
    assert kind.exit_code == (families[0] if families else 1)


def test_codes_are_unique() -> None:
    codes = Counter(kind().code for kind in OURS)
    assert [code for code, times in codes.items() if times > 1] == []


def test_what_may_be_tried_again() -> None:
    assert {e.__name__ for e in OURS if e.retryable} == {"BusUnavailable", "NotAcked", "StreamFull"}


@pytest.mark.parametrize("code", ["", "no-such-error", "FedbusError", "value-error"])
def test_an_unknown_code_is_a_plain_error(code: str) -> None:
    assert type(by_code(code, "message")) is FedbusError


def test_an_error_with_arguments_of_its_own_comes_back_as_its_family() -> None:
    code = JetStreamError(10071, "wrong last sequence").code
    again = by_code(code, "message", "hint")
    assert type(again) is errors.BusError
    assert (again.message, again.hint) == ("message", "hint")


def test_nearest() -> None:
    assert nearest("quorom", ["quorum", "target"]) == "quorum"
    assert nearest("zzz", ["quorum", "target"]) is None
    assert nearest("x", []) is None


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner
    many: list[int] = []


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({}, "inner: Field required"),
        ({"inner": {"size": 1, "sice": 2}}, "inner.sice: unknown key; did you mean 'size'?"),
        ({"inner": {"size": 1}, "q": 2}, "q: unknown key"),
        ({"inner": {"size": 1}, "many": [1, "x"]}, "many.1: Input should be a valid integer"),
        (7, "message: Input should be a valid dictionary"),
        ({"inner": {}, "q": 2}, "inner.size: Field required; q: unknown key"),
    ],
)
def test_a_failed_validation_in_one_line(value: Any, line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    said = describe(caught.value, ["size", "inner", "many"])
    assert said.startswith(line)
    assert "\n" not in said

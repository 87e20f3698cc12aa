"""Flag over variable over default; a variable that nothing reads is an error."""

from __future__ import annotations

import pytest
from fedbus.base.errors import ConfigError
from fedbus.base.settings import PREFIX, VARIABLES, Settings, check_environment, load, variable
from pydantic import Field, ValidationError


class Some(Settings):
    dir: str = Field("./.fedbus", description="folder")
    log: str = Field("info", description="level")
    state: int = Field(1, description="a number")


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {}, ("./.fedbus", "info")),
        ({}, {"FEDBUS_DIR": "/env"}, ("/env", "info")),
        ({"dir": "/flag"}, {"FEDBUS_DIR": "/env"}, ("/flag", "info")),
        ({"dir": None}, {"FEDBUS_DIR": "/env", "FEDBUS_LOG": "debug"}, ("/env", "debug")),
        ({}, {"HOME": "/root", "fedbus_dir": "/lower"}, ("./.fedbus", "info")),
    ],
)
def test_flag_over_variable_over_default(
    flags: dict[str, str], environ: dict[str, str], expected: tuple[str, str]
) -> None:
    made = load(Some, flags, environ)
    assert (made.dir, made.log) == expected


def test_an_unknown_variable_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Some, {}, {"FEDBUS_DRI": "/env"})
    assert caught.value.message == "unknown environment variable FEDBUS_DRI; did you mean FEDBUS_DIR?"
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in VARIABLES)
    with pytest.raises(ConfigError, match=r"^unknown environment variable FEDBUS_ZZZZZZ$"):
        check_environment({"FEDBUS_ZZZZZZ": ""})


def test_a_wrong_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^state: Input should be a valid integer"):
        load(Some, {}, {"FEDBUS_STATE": "x"})
    with pytest.raises(ConfigError, match=r"^dri: unknown key; did you mean 'dir'\?$"):
        load(Some, {"dri": "x"}, {})


def test_settings_are_frozen() -> None:
    made = load(Some, {}, {})
    with pytest.raises(ValidationError, match="frozen"):
        made.dir = "x"  # type: ignore[misc]


def test_every_variable_has_the_prefix_and_a_description() -> None:
    assert all(name.startswith(PREFIX) and name.isupper() and text for name, text in VARIABLES.items())


def test_one_variable_is_read_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_URL", "nats://h")
    assert variable("FEDBUS_URL") == "nats://h"
    monkeypatch.setenv("FEDBUS_URL", "")
    assert variable("FEDBUS_URL") is None
    monkeypatch.delenv("FEDBUS_URL")
    assert variable("FEDBUS_URL") is None
    with pytest.raises(ValueError, match="not declared"):
        variable("FEDBUS_OTHER")

"""How long a connection is tried for, and what is said of it; the tries are scripted."""

from __future__ import annotations

import logging

import pytest
from fedbus.base.errors import AuthRefused, BusUnavailable
from fedbus.bus import trying
from fedbus.bus.trying import Trying


class Tries:
    """Fails in this order, then works."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.made = 0

    async def __call__(self) -> None:
        self.made += 1
        if self.made <= len(self._failures):
            raise self._failures[self.made - 1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "BACKOFF_S", (0.0, 0.0))


REFUSED, ABSENT = AuthRefused("refused"), BusUnavailable("absent")


async def test_refusals_count_in_a_row_only() -> None:
    works = Tries(REFUSED, REFUSED, ABSENT, REFUSED, REFUSED)
    await Trying().until_open(works, refusals=3)
    assert works.made == 6
    refused = Tries(REFUSED, ABSENT, REFUSED, REFUSED, REFUSED)
    with pytest.raises(AuthRefused):
        await Trying().until_open(refused, refusals=3)
    assert refused.made == 5


async def test_a_refusal_of_a_moment_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    own = Trying()
    await own.until_open(Tries(REFUSED, REFUSED))
    assert caplog.text == ""
    assert own.last_error is None
    await own.until_open(Tries(*[REFUSED] * 9))
    assert caplog.text.count("trying on: refused") == 1


async def test_a_reason_that_lasts_is_said_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Trying().until_open(Tries(ABSENT, ABSENT))
    assert caplog.text.count("absent") == 1
    monkeypatch.setattr(trying, "REMIND_S", 0.0)
    await Trying().until_open(Tries(ABSENT, ABSENT))
    assert caplog.text.count("absent") == 3

"""What a worker that was let in before connects with: what is said of TLS now goes before what it saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.base.errors import ConfigError
from fedbus.bus import Credentials
from fedbus.runtime.identity import refuse_ca
from fedbus_worker.enrolling import CREDENTIAL_FILE, Enrolment
from fedbus_worker.entering import enter
from fedbus_worker.state import federation_folder

INVITE = "0123456789ab"


@pytest.mark.parametrize(
    ("saved", "url", "ca", "expected"),
    [
        (None, None, None, ("nats://hub:4222", None)),
        ("/old.pem", None, None, ("nats://hub:4222", "/old.pem")),
        ("/old.pem", None, "/new.pem", ("nats://hub:4222", "/new.pem")),
        ("/old.pem", "tls://hub:4222", None, ("tls://hub:4222", "/old.pem")),
        (None, "nats://hub:4222", "/new.pem", ("nats://hub:4222", "/new.pem")),
        (None, "tls://w:p@hub", "/new.pem", ("tls://hub:4222", "/new.pem")),
    ],
)
async def test_what_is_given_goes_before_what_was_saved(
    tmp_path: Path, saved: str | None, url: str | None, ca: str | None, expected: tuple[str, str | None]
) -> None:
    folder = federation_folder(tmp_path, "hub:4222") / "w"
    folder.mkdir(parents=True)
    own = Credentials(url="nats://hub:4222", user="w", password="p", ca=saved)
    Enrolment(credentials=own, invite=INVITE).save(folder / CREDENTIAL_FILE)
    state, credentials = await enter(tmp_path, url, "w", tmp_path / "no-stack", ca)
    state.release()
    assert (credentials.url, credentials.ca) == expected
    assert (credentials.user, credentials.password) == ("w", "p")


async def test_a_ca_is_not_for_the_local_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_CA", "/usual.pem")
    refuse_ca("/usual.pem", tmp_path)  # it is set for other federations
    with pytest.raises(ConfigError, match="does not speak TLS"):
        refuse_ca("/new.pem", tmp_path)

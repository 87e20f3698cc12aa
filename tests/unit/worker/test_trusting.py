"""What a worker that was let in before connects with: what is said of TLS now goes before what it saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.base.errors import ConfigError
from fedbus.bus import Credentials
from fedbus.bus.joinstring import JoinString
from fedbus.runtime.identity import refuse_ca
from fedbus_worker.enrolling import CREDENTIAL_FILE, PENDING_FILE, Enrolment, enrol
from fedbus_worker.entering import enter
from fedbus_worker.state import federation_folder
from support.tlsd import CA, OTHER_CA

INVITE = "0123456789ab"
NOBODY = "127.0.0.1:1"  # no broker listens there


def saved_in(folder: Path, url: str, ca: str | None, file: str = CREDENTIAL_FILE) -> Path:
    """A worker's folder with what an earlier join saved; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Credentials(url=url, user=folder.name, password="p", ca=ca)
    Enrolment(credentials=own, invite=INVITE).save(folder / file)
    return folder / file


def demands(file: Path) -> tuple[str, str | None]:
    """What a saved credential says of TLS."""
    own = Enrolment.model_validate_json(file.read_bytes()).credentials
    return own.url.partition("://")[0], own.ca


@pytest.mark.parametrize(
    ("saved", "url", "ca", "expected"),
    [
        (None, None, None, ("nats://hub:4222", None)),
        (CA, None, None, ("nats://hub:4222", CA)),
        (CA, None, OTHER_CA, ("nats://hub:4222", OTHER_CA)),
        (CA, "tls://hub:4222", None, ("tls://hub:4222", CA)),
        (None, "nats://hub:4222", OTHER_CA, ("nats://hub:4222", OTHER_CA)),
        (None, "tls://w:p@hub", OTHER_CA, ("tls://hub:4222", OTHER_CA)),
    ],
)
async def test_what_is_given_goes_before_what_was_saved(
    tmp_path: Path, saved: str | None, url: str | None, ca: str | None, expected: tuple[str, str | None]
) -> None:
    saved_in(federation_folder(tmp_path, "hub:4222") / "w", "nats://hub:4222", saved)
    state, credentials = await enter(tmp_path, url, "w", tmp_path / "no-stack", ca)
    state.release()
    assert (credentials.url, credentials.ca) == expected
    assert (credentials.user, credentials.password) == ("w", "p")


@pytest.mark.parametrize(
    ("url", "ca", "expected"),
    [
        (None, CA, ("nats", CA)),
        (f"tls://{NOBODY}", None, ("tls", None)),
        (f"nats://{NOBODY}", CA, ("nats", CA)),
        (f"fedbus://{NOBODY}/#{INVITE}.{'0' * 48}", CA, ("nats", CA)),
    ],
)
async def test_what_was_demanded_once_is_demanded_at_the_next_start(
    tmp_path: Path, url: str | None, ca: str | None, expected: tuple[str, str | None]
) -> None:
    """Else whoever takes TLS out of the broker's greeting is told the password then."""
    file = saved_in(federation_folder(tmp_path, NOBODY) / "w", f"nats://{NOBODY}", None)
    for each in ((url, ca), (None, None)):
        state, credentials = await enter(tmp_path, each[0], "w", tmp_path / "no-stack", each[1])
        state.release()
        assert (credentials.url.partition("://")[0], credentials.ca) == expected
        assert credentials.demands_tls
        assert demands(file) == expected


@pytest.mark.parametrize("url", [None, f"fedbus://{NOBODY}/#{INVITE}.{'0' * 48}"])
@pytest.mark.parametrize("file", [CREDENTIAL_FILE, PENDING_FILE])
async def test_a_ca_that_cannot_be_read_takes_the_place_of_none(
    tmp_path: Path, url: str | None, file: str
) -> None:
    path = saved_in(federation_folder(tmp_path, NOBODY) / "w", f"nats://{NOBODY}", CA, file)
    with pytest.raises(ConfigError):
        await enter(tmp_path, url, "w", tmp_path / "no-stack", str(tmp_path / "absent.pem"))
    assert demands(path) == ("nats", CA)


async def test_a_ca_that_is_gone_is_no_refusal(tmp_path: Path) -> None:
    """Of what was asked and not answered, the secret may work already."""
    path = saved_in(tmp_path / "w", f"nats://{NOBODY}", str(tmp_path / "gone.pem"), PENDING_FILE)
    with pytest.raises(ConfigError, match=r"gone\.pem"):
        await enrol(tmp_path / "w", JoinString(f"nats://{NOBODY}", INVITE, "0" * 48))
    assert path.exists()


async def test_a_ca_is_not_for_the_local_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_CA", "/usual.pem")
    refuse_ca("/usual.pem", tmp_path)  # it is set for other federations
    with pytest.raises(ConfigError, match="does not speak TLS"):
        refuse_ca("/new.pem", tmp_path)

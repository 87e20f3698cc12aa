"""Joining a broker that speaks TLS, or should: what was demanded of it once is never given up in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedbus.base.errors import TlsRefused
from fedbus.bus import Credentials
from fedbus.bus.joinstring import JoinString
from fedbus_worker.enrolling import CREDENTIAL_FILE, PENDING_FILE, Enrolment, enrol
from support.natsd import Stack
from support.tlsd import CA, secured

INVITE, OTHER = "0123456789ab", "ba9876543210"
SECRET = "0" * 48


def folder_of(root: Path, file: str, own: Credentials) -> Path:
    """A worker's folder in which an earlier join left this file."""
    folder = root / own.user
    folder.mkdir()
    Enrolment(credentials=own, invite=INVITE).save(folder / file)
    return folder


async def test_a_credential_that_works_already_is_saved_with_the_ca_of_now(tmp_path: Path) -> None:
    """Its answer was lost, and then the invitation was used up: nobody can be asked."""
    async with secured(tmp_path, "w") as own:
        made = own.credentials("w")
        plain = made.model_copy(update={"url": f"nats://{own.address}", "ca": None})
        folder = folder_of(tmp_path, PENDING_FILE, plain)
        entered = await enrol(folder, JoinString(plain.url, INVITE, SECRET, CA))
        saved = Enrolment.model_validate_json((folder / CREDENTIAL_FILE).read_bytes())
        assert saved.credentials == entered == plain.trusting(CA)
        assert not (folder / PENDING_FILE).exists()


@pytest.mark.parametrize("invite", [INVITE, OTHER])
@pytest.mark.parametrize("how", ["tls", "ca"])
async def test_what_an_earlier_join_demanded_is_demanded_of_the_next(
    stack: Stack, tmp_path: Path, invite: str, how: str
) -> None:
    """The invitation's secret is sent to nobody without TLS, and neither is the worker's own."""
    own = Credentials(url=stack.url, user="w", password="p" * 32).trusting(
        CA if how == "ca" else None, tls=how == "tls"
    )
    folder = folder_of(tmp_path, PENDING_FILE, own)
    with pytest.raises(TlsRefused):
        await enrol(folder, JoinString(stack.url, invite, SECRET))
    saved = Enrolment.model_validate_json((folder / PENDING_FILE).read_bytes())
    assert (saved.credentials, saved.invite) == (own, INVITE)

"""Invitations: who may come in, what is used and given back."""

from __future__ import annotations

import pytest
from fedbus.base.errors import InviteRefused
from fedbus.rounds.invitations import admission, check, digest, given_back, issued, over, paid, report, spent
from fedbus_schemas.roster import CreateInvite, Invite, Join
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_000_000.0
ID, SECRET = "0123456789ab", "s" * 32


def invite(uses: int = 1, **changes: object) -> Invite:
    command = CreateInvite(site="north", expires_s=60.0, uses=uses, labels={"gpu": "yes"})
    return issued(command, ID, SECRET, NOW).model_copy(update=changes)


def join(worker: str = "w1", secret: str = SECRET, own: str = "o" * 43) -> Join:
    return Join(invite=ID, secret=secret, worker=worker, own_secret=own)


def test_only_the_hash_of_the_secret_is_kept() -> None:
    assert SECRET not in invite().model_dump_json()
    assert invite().secret_sha256 == digest(SECRET)


@pytest.mark.parametrize(
    ("made", "at", "code", "said"),
    [
        (invite(), NOW + 59.9, None, None),
        (invite(), NOW + 60.0, "expired", "expired"),
        (invite(revoked=True), NOW, "revoked", "revoked"),
        (invite(left=0), NOW, "used-up", "for use once"),
        (invite(uses=3, left=0), NOW, "used-up", "3 times"),
        (invite(revoked=True, left=0), NOW + 99, "revoked", "revoked"),
    ],
)
def test_what_ends_an_invitation(made: Invite, at: float, code: str | None, said: str | None) -> None:
    found = over(made, at)
    assert (found and found[0]) == code
    assert report(made, at).state == (code or "open")
    if said is None:
        assert check(made, join(), at) is made
    else:
        with pytest.raises(InviteRefused, match=said):
            check(made, join(), at)


def test_a_wrong_secret_is_as_no_invitation() -> None:
    said = set()
    for made, asked in ((None, join()), (invite(), join(secret="x" * 32))):
        with pytest.raises(InviteRefused) as caught:
            check(made, asked, NOW)
        said.add(caught.value.message)
    assert said == {"no such invitation"}


def test_a_repeat_by_the_same_worker_is_let_in_and_not_counted() -> None:
    used = spent(invite(), join())
    assert (used.left, paid(used, join())) == (0, True)
    assert check(used, join(), NOW) is used
    # Another worker, or another host under the same name, is not.
    for stranger in (join("w2"), join(own="p" * 43)):
        assert not paid(used, stranger)
        with pytest.raises(InviteRefused, match="used up"):
            check(used, stranger, NOW)
    for ended in (used.model_copy(update={"revoked": True}), used.model_copy(update={"expires_at": NOW})):
        with pytest.raises(InviteRefused):
            check(ended, join(), NOW)


def test_the_terms_are_the_invitations() -> None:
    terms = admission(invite(), "w1", NOW + 1)
    assert (terms.site, terms.labels, terms.invite, terms.at) == ("north", {"gpu": "yes"}, ID, NOW + 1)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c", "d", "e"])), max_size=30))
def test_uses_add_up(steps: list[tuple[bool, str]]) -> None:
    """Whatever is used and given back, in any order: used and left are the uses, and never below none."""
    made = invite(uses=3)
    for comes, worker in steps:
        if not comes:
            made = given_back(made, worker)
            continue
        try:
            check(made, join(worker), NOW)
        except InviteRefused:
            assert made.left == 0
            continue
        if not paid(made, join(worker)):
            made = spent(made, join(worker))
        assert made.left >= 0
    assert made.left + len(made.used_by) == 3

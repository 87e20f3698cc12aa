"""The join string: one text, read back whole, and explained without its secret when it is not one."""

from __future__ import annotations

import pytest
from fedbus.base.errors import ConfigError, FedbusError, InviteRefused
from fedbus.bus.joinstring import JoinString, is_meant

ID, SECRET = "0123456789ab", "s3cret-" * 6
STRING = JoinString("nats://hub.example.org:4222", ID, SECRET)


@pytest.mark.parametrize("url", ["nats://hub.example.org:4222", "nats://[::1]:7", "nats://127.0.0.1:65535"])
def test_it_is_read_back(url: str) -> None:
    string = JoinString(url, ID, SECRET)
    assert JoinString.parse(f" {string.to_text()}\n") == string


def test_the_default_port_and_the_identity() -> None:
    string = JoinString.parse(f"fedbus://hub.example.org/#{ID}.{SECRET}")
    assert string == STRING
    assert (string.credentials.url, string.credentials.user) == (STRING.url, f"invite-{ID}")
    assert string.credentials.password == SECRET


def test_the_secret_does_not_show() -> None:
    assert SECRET not in f"{STRING} {STRING!r} {STRING.credentials!r}"


@pytest.mark.parametrize(
    "text",
    [
        "", "fedbus://", "fedbus://hub:4222/", f"fedbus://hub:4222/#{ID}", f"fedbus://hub:4222/#{ID}.",
        f"fedbus://hub:4222/#{SECRET}", f"fedbus://hub:4222/#{ID.upper()}.{SECRET}",
        f"fedbus://hub:99999/#{ID}.{SECRET}", f"fedbus://hub:x/#{ID}.{SECRET}",
        f"nats://hub:4222/#{ID}.{SECRET}", f"fedbus://u:p@hub:4222/#{ID}.{SECRET}",
        f"fedbus://hub:4222/path#{ID}.{SECRET}", f"fedbus://hub:4222/?q#{ID}.{SECRET}",
        f"fedbus://hub:4222/#{ID}.{SECRET}\x00", f"fedbus://hub:4222/#{ID}.short",
    ],
)  # fmt: skip
def test_a_wrong_string_is_explained_without_its_secret(text: str) -> None:
    with pytest.raises(FedbusError) as caught:
        JoinString.parse(text)
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("scheme", ["fedbuss", "fedbu", "http", "nats"])
def test_a_mistake_in_the_scheme_names_the_host_and_the_scheme_and_no_secret(scheme: str) -> None:
    with pytest.raises(ConfigError, match=r"hub:4222 must begin with fedbus://") as caught:
        JoinString.parse(f"{scheme}://hub:4222/#{ID}.{SECRET}")
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("token", [f"{ID[:-1]}x.{SECRET}", f"{ID}.short", ID])
def test_a_mistake_in_the_invitation_is_an_error_of_the_invitation(token: str) -> None:
    with pytest.raises(InviteRefused, match="not whole"):
        JoinString.parse(f"fedbus://hub:4222/#{token}")


def test_what_is_meant_as_a_join_string() -> None:
    assert is_meant(STRING.to_text())
    assert is_meant(f"fedbsu://hub/#{ID}.{SECRET}")
    assert not is_meant("nats://w1:secret@hub:4222")

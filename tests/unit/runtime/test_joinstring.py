"""The join string: one text, read back whole, and explained without its secret when it is not one."""

from __future__ import annotations

import pytest
from fedbus.base.errors import ConfigError
from fedbus.bus.joinstring import JoinString

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
    with pytest.raises(ConfigError) as caught:
        JoinString.parse(text)
    assert SECRET not in caught.value.message

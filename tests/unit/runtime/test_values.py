"""Credentials, storage bounds and the rendered configuration: values in, values out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedbus.base.errors import ConfigError
from fedbus.bus.credentials import Credentials
from fedbus.runtime.broker import Broker
from fedbus.runtime.disk import GIB, LEAST, MOST, bound
from fedbus.runtime.rights import IDENTITIES, rights_of, rights_of_worker
from fedbus.runtime.serverconf import render_accounts, render_server
from hypothesis import given
from hypothesis import strategies as st

SECRET = "s3cr:t@/%?#"
CREDENTIALS = Credentials(url="nats://127.0.0.1:4222", user="planner", password=SECRET)


def test_a_secret_does_not_show() -> None:
    assert SECRET not in f"{CREDENTIALS!r} {CREDENTIALS} {[CREDENTIALS]}"
    assert CREDENTIALS.name == "planner"
    assert CREDENTIALS.inbox_prefix == "_INBOX_planner"


@given(
    scheme=st.sampled_from(["nats", "tls"]),
    host=st.sampled_from(["localhost", "10.0.0.1", "[::1]", "hub.example.org"]),
    port=st.integers(1, 65535),
    user=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    password=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_a_url_carries_it_all(scheme: str, host: str, port: int, user: str, password: str) -> None:
    credentials = Credentials(url=f"{scheme}://{host}:{port}", user=user, password=password)
    assert Credentials.from_url(credentials.to_url()) == credentials
    assert (credentials.host, credentials.port) == (host.strip("[]"), port)
    assert credentials.demands_tls is (scheme == "tls")


def test_a_ca_lasts_and_demands_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = Credentials.from_url("nats://w:p@hub", "ca.pem")
    saved.save(tmp_path / "credential.json")
    monkeypatch.chdir("/")
    assert Credentials.load(tmp_path / "credential.json").ca == str(tmp_path / "ca.pem")
    text = "-----BEGIN CERTIFICATE-----"
    given = Credentials.from_url("nats://w:p@hub", text)
    assert (given.ca, given.demands_tls) == (text, True)


def test_the_default_port() -> None:
    assert Credentials.from_url("nats://w:p@hub").url == "nats://hub:4222"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://w:hidden@hub", "must begin with nats:// or tls://"),
        ("nats://hub:4222", "carries no user and password"),
        ("nats://w@hub:4222", "carries no user and password"),
        ("nats://w:hidden@", "names no host"),
        ("nats://w:hidden@hub:99999", "wrong host or port"),
        ("nats://w:hidden@hub:port", "wrong host or port"),
        ("nats://w.x:hidden@hub", "has user 'w.x'"),
        ("nats://w%0A:hidden@hub", "has user"),
        ("nats://w:hidden@hub/path", "something after the port"),
        ("", "must begin with nats://"),
    ],
)
def test_a_wrong_url_is_explained_without_its_secret(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        Credentials.from_url(url)
    assert "hidden" not in f"{caught.value}"


def test_a_file_keeps_it_private(tmp_path: Path) -> None:
    path = tmp_path / "credential.json"
    path.write_text("an older one")
    path.chmod(0o644)
    CREDENTIALS.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Credentials.load(path) == CREDENTIALS
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_file_is_explained_without_its_secret(tmp_path: Path) -> None:
    path = tmp_path / "credential.json"
    with pytest.raises(ConfigError, match="cannot read the credential"):
        Credentials.load(path)
    path.write_text(json.dumps({"url": "nats://u:hidden@hub:1", "user": "w", "password": "hidden"}))
    with pytest.raises(ConfigError, match="is not a credential: url") as caught:
        Credentials.load(path)
    assert "hidden" not in f"{caught.value}"


@given(total=st.integers(0, 1 << 50), share=st.floats(0, 1), held=st.integers(0, 1 << 45))
def test_the_limit_leaves_a_reserve(total: int, share: float, held: int) -> None:
    free = int(total * share)
    try:
        limit = bound(total=total, free=free, held=held, where="/data")
    except ConfigError:
        assert free + held - max(GIB, total // 20) < LEAST
        return
    assert LEAST <= limit <= MOST
    # When the store has grown to its limit, at least the reserve is still free.
    assert free + held - limit >= max(GIB, total // 20)


def test_a_full_disk_is_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"too little disk space at /data: 0\.5 GiB free, 5\.0 GiB reserved"
    ):
        bound(total=100 * GIB, free=GIB // 2, held=0, where="/data")


def test_the_server_syncs_what_it_acknowledges() -> None:
    text = render_server(Path("/stack/broker"), "127.0.0.1", 4222, 10 * GIB)
    assert '"sync_interval": "always"' in text
    assert f'"max_file_store": {20 * GIB}' in text, "what binds is the account's limit"
    assert text.endswith("include accounts.conf\n")


def test_workers_live_apart_from_the_streams() -> None:
    secrets = dict.fromkeys(IDENTITIES, "s")
    first = render_accounts(secrets, {"w": "p"}, GIB).split("\nsystem_account")[0]
    accounts = json.loads(first.removeprefix("accounts: "))
    assert "jetstream" not in accounts["WRK"]
    assert "jetstream" not in accounts["SYS"]
    assert accounts["SYS"]["users"] == []
    assert [user["user"] for user in accounts["WRK"]["users"]] == ["w"]
    assert {user["user"] for user in accounts["FED"]["users"]} == set(IDENTITIES)
    exported = [
        {k: v for k, v in each.items() if k in ("service", "stream")} for each in accounts["FED"]["exports"]
    ]
    imported = [
        {kind: source["subject"] for kind, source in each.items()} for each in accounts["WRK"]["imports"]
    ]
    assert exported == imported


@pytest.mark.parametrize("name", [*IDENTITIES, "worker"])
def test_nobody_has_an_open_right(name: str) -> None:
    rights = rights_of(name) if name in IDENTITIES else rights_of_worker(name)
    for subject in (*rights.publish, *rights.subscribe):
        assert subject.split(".")[0] not in ("*", ">")
        assert subject not in ("fb.>", "$JS.>", "$JS.API.>", "$SYS.>")


@pytest.mark.parametrize(
    "listen", ["", ":4222", "::1", "host:", "host:x", "host:70000", "[::1", "a b:1", "host:1:2"]
)
def test_a_wrong_address_is_explained(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match="use HOST:PORT"):
        Broker(tmp_path, listen=listen)


def test_ipv6_gets_its_brackets() -> None:
    assert '"[::1]:4222"' in render_server(Path("/stack/broker"), "::1", 4222, GIB)
    Broker(Path("/stack"), listen="[::1]:4222")

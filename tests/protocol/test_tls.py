"""TLS, over each kind of link, against a real nats-server: whoever is not to be trusted is told nothing."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fedbus.base.clock import random_token
from fedbus.base.errors import AuthRefused, BusUnavailable, FedbusError, TlsRefused
from fedbus.bus import Bus
from fedbus.bus import link as links
from fedbus.bus.credentials import Credentials
from fedbus.bus.store import Publisher, get, put
from fedbus.runtime.probe import Answer, probe
from fedbus_schemas import subjects
from support.buses import buses, until
from support.natsd import Stack
from support.proxy import proxy
from support.tlsd import CA, CA_TEXT, CERTIFICATES, OTHER_CA, secured

MIB = 1 << 20


@pytest.fixture(params=["lean", "nats-py"], autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs over both."""
    monkeypatch.setenv("FEDBUS_CLIENT", request.param)
    return str(request.param)


def chunk_of(worker: str, leaf: int | str = 0) -> str:
    return subjects.update(f"tls-{random_token()}", 1, worker, "0", "t", leaf)


async def refusal(credentials: Credentials, wait_s: float | None = 20.0) -> FedbusError:
    """Why the first connection failed; it is known at once, and not tried for."""
    began = time.monotonic()
    with pytest.raises(FedbusError) as caught:
        await Bus.connect(credentials, wait_s=wait_s, refusals=None)
    assert time.monotonic() - began < 4
    return caught.value


async def test_an_update_goes_up_and_comes_down(tmp_path: Path) -> None:
    """20 MiB, in chunks that are received whole; and small messages among them."""
    chunks = [bytes([i]) * (MIB + i) for i in range(20)]
    async with (
        secured(tmp_path, "w", "aggregator") as own,
        buses(own.credentials("w"), own.credentials("aggregator")) as (worker, aggregator),
    ):
        where = chunk_of("w", "")

        async def items() -> AsyncIterator[tuple[str, bytes]]:
            for i, chunk in enumerate(chunks):
                yield f"{where}{i}", chunk

        await Publisher(worker).put_all(items())
        for i, chunk in enumerate(chunks):
            assert (await get(aggregator, subjects.UPDATES, f"{where}{i}")).data == chunk
        heard: list[bytes] = []
        await aggregator.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        for i in range(200):
            await worker.publish(subjects.beat("w"), b"%d" % i)
        await until(lambda: len(heard) == 200, "all are heard")
        assert heard == [b"%d" % i for i in range(200)]


@pytest.mark.parametrize("form", ["path", "text"])
async def test_a_ca_is_a_path_or_the_certificate_itself(tmp_path: Path, form: str) -> None:
    ca = CA if form == "path" else CA_TEXT
    async with secured(tmp_path, "w") as own:
        for scheme in ("tls", "nats"):
            mine = own.credentials("w").model_copy(update={"ca": ca, "url": f"{scheme}://{own.address}"})
            async with buses(mine) as (worker,):
                await worker.flush()


async def test_a_broker_that_demands_tls_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nats:// as well; whom this system trusts counts where no CA is given."""
    monkeypatch.setenv("SSL_CERT_FILE", CA)
    async with secured(tmp_path, "w") as own:
        for scheme in ("nats", "tls"):
            mine = own.credentials("w").model_copy(update={"ca": None, "url": f"{scheme}://{own.address}"})
            async with buses(mine) as (worker,):
                await worker.flush()
            monkeypatch.setenv("SSL_CERT_FILE", OTHER_CA)
            assert "is not trusted" in (await refusal(mine)).message
            monkeypatch.setenv("SSL_CERT_FILE", CA)


async def test_a_broker_that_only_offers_tls(tmp_path: Path) -> None:
    """Whoever demands it gets it, whoever does not may go without."""
    async with secured(tmp_path, "w", beside="allow_non_tls: true") as own:
        demanding = own.credentials("w")
        async with buses(demanding) as (worker,):
            await worker.flush()
        assert isinstance(await refusal(demanding.model_copy(update={"ca": OTHER_CA})), TlsRefused)
        plain = demanding.model_copy(update={"ca": None, "url": f"nats://{own.address}"})
        async with buses(plain) as (worker,):
            await worker.flush()


@pytest.mark.parametrize("wait_s", [20.0, None])
async def test_another_authority_is_not_trusted(tmp_path: Path, wait_s: float | None) -> None:
    """Whoever waits for a broker as long as it takes does not wait for this."""
    async with secured(tmp_path, "w") as own:
        error = await refusal(own.credentials("w").model_copy(update={"ca": OTHER_CA}), wait_s)
        assert (error.code, error.exit_code, error.retryable) == ("tls-refused", 50, False)
        assert error.message.startswith(f"{own.url}: the broker's certificate is not trusted: ")
        assert "is it that of this broker?" in (error.hint or "")
        error = await refusal(own.credentials("w").model_copy(update={"ca": None}), wait_s)
        assert "--ca FILE" in (error.hint or "")


@pytest.mark.parametrize(
    ("certificate", "says"),
    [("elsewhere", "certificate is not one for 127.0.0.1"), ("expired", "certificate has expired")],
)
async def test_a_certificate_that_does_not_fit(tmp_path: Path, certificate: str, says: str) -> None:
    async with secured(tmp_path, "w", certificate=certificate) as own:
        error = await refusal(own.credentials("w"))
        assert (error.code, error.message) == ("tls-refused", f"{own.url}: the broker's {says}")
        assert error.hint


async def test_the_name_of_the_host_counts(tmp_path: Path) -> None:
    async with secured(tmp_path, "w") as own:
        port = own.address.rpartition(":")[2]
        named = own.credentials("w").model_copy(update={"url": f"tls://localhost:{port}"})
        async with buses(named) as (worker,):
            await worker.flush()


async def test_a_broker_that_wants_a_certificate_of_us(tmp_path: Path) -> None:
    async with secured(tmp_path, "w", inside=f'verify: true\nca_file: "{CA}"') as own:
        error = await refusal(own.credentials("w"))
        assert (error.code, "demands a certificate of its clients" in error.message) == ("tls-refused", True)


async def test_a_wrong_password_is_refused_as_without_tls(tmp_path: Path) -> None:
    async with secured(tmp_path, "w") as own:
        wrong = own.credentials("w").model_copy(update={"password": "wrong"})
        with pytest.raises(AuthRefused, match="refuses the credential of w"):
            await Bus.connect(wrong)
        assert [probe(own.credentials("w")), probe(wrong)] == [Answer.ACCEPTED, Answer.REFUSED]
        assert probe(wrong.model_copy(update={"ca": OTHER_CA})) is Answer.SILENT


@pytest.mark.parametrize("how", ["tls", "ca"])
async def test_a_broker_without_tls_is_refused(stack: Stack, how: str) -> None:
    mine = stack.credentials("w-plain")
    changed = {"url": mine.url.replace("nats", "tls")} if how == "tls" else {"ca": CA}
    error = await refusal(mine.model_copy(update=changed))
    assert (error.code, "does not speak TLS" in error.message) == ("tls-refused", True)
    assert probe(mine.model_copy(update=changed)) is Answer.SILENT


@asynccontextmanager
async def impostor(info: dict[str, object], behind: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """Greets, says more in the same breath, and keeps what it is told."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n" + behind)
        heard.append(await reader.read(1 << 16))
        writer.write(b"PONG\r\n")
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


INFO: dict[str, object] = {"version": "2.14.0", "max_payload": MIB}


@pytest.mark.parametrize(
    ("info", "behind", "expected"),
    [
        (INFO, b"", TlsRefused),
        ({**INFO, "tls_required": True}, b"", BusUnavailable),
        ({**INFO, "tls_required": True}, b"PONG\r\nPONG\r\n", BusUnavailable),
        ({**INFO, "tls_available": True}, b"-ERR 'Authorization Violation'\r\n", BusUnavailable),
    ],
    ids=["no TLS", "clear text later", "clear text behind the greeting", "a forged refusal"],
)
async def test_nothing_is_said_in_clear_text(
    info: dict[str, object], behind: bytes, expected: type[FedbusError]
) -> None:
    """Whoever sits in between may strike TLS from the greeting, or put words behind it."""
    async with impostor(info, behind) as (address, heard):
        mine = Credentials(url=f"tls://{address}", user="w", password="the-secret", ca=CA)
        with pytest.raises(expected):
            await Bus.connect(mine, wait_s=1.0)
        await until(lambda: len(heard) > 1, "it heard all")
        said = b"".join(heard)
    assert b"the-secret" not in said
    assert b"CONNECT" not in said
    assert said[:1] in (b"", b"\x16")  # nothing, or a TLS handshake


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_a_ca_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    async with impostor({**INFO, "tls_required": True}) as (address, _):
        path = tmp_path / "ca.pem"
        if content is not None:
            path.write_text(content)
        error = await refusal(Credentials(url=f"tls://{address}", user="w", password="p", ca=str(path)))
        assert (error.code, f"cannot read certificates from {path}" in error.message) == (
            "config-error",
            True,
        )


async def test_a_restarted_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It comes back in TLS. One that is not to be trusted then is not, and does not end the trying."""
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_TEXT)
    async with (
        secured(tmp_path, "w", "enroll") as own,
        buses(own.credentials("w").model_copy(update={"ca": str(ca)}), own.credentials("enroll")) as both,
    ):
        worker, enroll = both
        heard: list[bytes] = []
        await enroll.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        for certificate, refused in (
            ("server", None),
            ("expired", "has expired"),
            ("elsewhere", "not one for"),
        ):
            await asyncio.to_thread(own.kill)
            await until(lambda: not worker.connected and not enroll.connected, "both see it")
            await asyncio.to_thread(own.start, certificate)
            if refused is None:
                async with asyncio.timeout(10):
                    await asyncio.gather(worker.wait_up(), enroll.wait_up())
            else:
                await until(lambda why=refused: why in str(worker.last_error), "it is not trusted")  # type: ignore[misc]
        ca.write_text("no certificate")
        await until(lambda: "cannot read certificates" in str(worker.last_error), "nor is it without a CA")
        ca.write_text(CA_TEXT)
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.start)
        async with asyncio.timeout(10):
            await asyncio.gather(worker.wait_up(), enroll.wait_up())
        await enroll.flush()
        await worker.publish(subjects.beat("w"), b"again")
        await until(lambda: heard == [b"again"], "the renewed subscription hears")


async def test_a_broken_handshake_is_tried_again(tmp_path: Path) -> None:
    async with secured(tmp_path, "w") as own, proxy(own.url) as between:
        between.answering.clear()  # nothing of the broker's comes through
        connecting = asyncio.create_task(Bus.connect(between.credentials(own.credentials("w"))))
        await until(lambda: between.links == 1, "it has dialled")
        between.cut()
        between.answering.set()
        worker = await connecting
        await worker.flush()
        await worker.close()


async def test_what_was_changed_on_the_way_breaks_the_link(tmp_path: Path) -> None:
    async with (
        secured(tmp_path, "w") as own,
        proxy(own.url) as between,
        buses(between.credentials(own.credentials("w"))) as (worker,),
    ):
        link = worker.link
        between.inject(b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: worker.connected and worker.link is not link, "broken, and open again")
        await worker.flush()


async def test_publishing_waits_for_room(tmp_path: Path) -> None:
    """On a stalled link only so much is taken and encrypted; the rest goes out when it moves again."""
    async with (
        secured(tmp_path, "w", "evaluator") as own,
        proxy(own.url) as between,
        buses(own.credentials("evaluator"), between.credentials(own.credentials("w"))) as (evaluator, worker),
    ):
        heard: list[int] = []
        await evaluator.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data[0]))
        between.flowing.clear()
        sent: list[int] = []

        async def publish() -> None:
            for i in range(96):
                await worker.publish(subjects.beat("w"), bytes([i]) + bytes(MIB))
                sent.append(i)

        publishing = asyncio.create_task(publish())
        if os.environ["FEDBUS_CLIENT"] == "lean":  # nats-py has 64 MiB of its own before it waits
            await until(lambda: len(sent) >= 2, "some is taken")
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(sent) < 24
        between.flowing.set()
        await publishing
        await until(lambda: len(heard) == 96, "all arrive")
        assert heard == list(range(96))


async def test_a_stalled_link_is_noticed_and_a_slow_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves is counted in bytes on the wire: a PING that is only encrypted is no sign of life."""
    monkeypatch.setattr(links, "PING_S", 0.1)
    monkeypatch.setattr(links, "STALE_S", 1.0)
    async with (
        secured(tmp_path, "w") as own,
        proxy(own.url, rate=8 * MIB) as between,
        buses(between.credentials(own.credentials("w"))) as (worker,),
    ):
        link, where = worker.link, chunk_of("w", "")
        await asyncio.gather(*(put(worker, f"{where}{i}", bytes(MIB), expected=0) for i in range(16)))
        assert worker.link is link
        between.flowing.clear()
        uploads = [
            asyncio.create_task(worker.request(f"{where}s{i}", bytes(MIB), timeout_s=50)) for i in range(16)
        ]
        await until(lambda: not worker.connected, "the stall is noticed", 8)
        failed = await asyncio.gather(*uploads, return_exceptions=True)
        assert {type(each) for each in failed} <= {BusUnavailable}
        between.cut()
        between.flowing.set()


async def test_what_was_published_last_goes_out_before_closing(tmp_path: Path) -> None:
    async with (
        secured(tmp_path, "w", "evaluator") as own,
        buses(own.credentials("evaluator")) as (evaluator,),
    ):
        heard: list[bytes] = []
        await evaluator.subscribe(subjects.ALL_BEATS, lambda message: heard.append(message.data))
        async with buses(own.credentials("w")) as (worker,):
            for _ in range(8):
                await worker.publish(subjects.beat("w"), bytes(MIB))
            await worker.publish(subjects.beat("w"), b"leaving")
        await until(lambda: b"leaving" in heard, "the last message arrives")


def test_the_certificates_are_what_they_are_taken_for() -> None:
    """A clock that is far off would make other tests here pass for a wrong reason."""
    for name in ("ca", "other-ca", "server", "elsewhere", "expired"):
        info = ssl._ssl._test_decode_cert(str(CERTIFICATES / f"{name}.pem"))  # type: ignore[attr-defined]
        ends = ssl.cert_time_to_seconds(info["notAfter"])
        assert (ends < time.time()) is (name == "expired")

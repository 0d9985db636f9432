"""The one way out: where it never goes, and what it bears."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common import egress as egress_module
from common.destinations import Destinations, address_of, is_public
from common.egress import Egress
from tests.hostile_urls import ADDRESSES, URLS
from tests.receiver import Flood, Receiver, drip_body, drip_head, never, status

CONNECTED: list[Any] = []
_watching = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "socket.connect" and isinstance(args[1], tuple):
        CONNECTED.append(args[1])


sys.addaudithook(_audit)  # it cannot be taken back, so it looks whether anybody watches


@pytest.fixture
def connected() -> Iterator[list[Any]]:
    """Every address that a socket of this process was connected to."""
    global _watching
    CONNECTED.clear()
    _watching = True
    yield CONNECTED
    _watching = False


@pytest.mark.parametrize("url", URLS)
async def test_nothing_hostile_is_ever_connected_to(url: str, connected: list[Any]) -> None:
    egress = Egress(Destinations(), 2)
    reply = await egress.post(url, {}, b"{}")
    await egress.close()
    assert reply.status is None
    assert reply.error
    assert not any(not is_public(ipaddress.ip_address(host)) for host, *_ in connected)


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_name_that_leads_to_such_an_address_is_not_connected_to(address: str, connected: list[Any]) -> None:
    async def resolve(host: str, port: int) -> list[Any]:
        return [address_of("1.1.1.1"), address_of(address)]

    egress = Egress(Destinations(), 2, resolve)
    reply = await egress.post("https://example.org/", {}, b"{}")
    await egress.close()
    assert reply.error is not None
    assert reply.error.startswith("refused")
    assert connected == []


async def test_whoever_connects_checks_once_more(connected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Destinations, "check_url", Destinations("127.0.0.0/8").check_url)
    monkeypatch.setattr(egress_module, "_pinned", lambda target, address: "http://127.0.0.1:1/")
    egress = Egress(Destinations(), 2, lambda host, port: _resolved("1.1.1.1"))
    for url in ("https://example.org/",):
        reply = await egress.post(url, {}, b"{}")
        assert reply.error is not None
        assert "127.0.0.1 is not a public address" in reply.error
    await egress.close()
    assert connected == []


async def test_the_watch_over_connections_sees_those_that_are_made(receiver: Receiver, connected: list[Any]) -> None:
    egress = Egress(Destinations("127.0.0.1"), 2)
    assert (await egress.post(receiver.url, {}, b"{}")).good
    await egress.close()
    assert connected == [("127.0.0.1", receiver.port)]


async def _resolved(*addresses: str) -> list[Any]:
    return [address_of(one) for one in addresses]


@pytest.fixture
async def receiver() -> Any:
    """On loopback."""
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def egress() -> Any:
    """Loopback is exempt; an attempt may take a second."""
    made = Egress(Destinations("127.0.0.1"), 1)
    yield made
    await made.close()


@pytest.mark.parametrize("answer", [never, drip_head])
async def test_a_receiver_that_does_not_come_to_an_end_is_left_in_time(
    receiver: Receiver, egress: Egress, answer: Any
) -> None:
    receiver.will(answer)
    began = time.monotonic()
    reply = await egress.post(receiver.url, {}, b"{}")
    assert time.monotonic() - began < 1.5
    assert reply.error == "no answer within 1 s"


async def test_the_status_counts_though_the_body_never_ends(receiver: Receiver) -> None:
    egress = Egress(Destinations("127.0.0.1"), 5)
    receiver.will(drip_body)
    reply = await egress.post(receiver.url, {}, b"{}")
    await egress.close()
    assert reply.good
    assert reply.took_ms < 2000


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: "],
    ids=["body", "head"],
)
async def test_of_a_gigabyte_little_is_read(
    receiver: Receiver, egress: Egress, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    original = egress_module._Counted.read

    async def counted(self: Any, max_bytes: int, timeout: float | None = None) -> bytes:
        nonlocal read
        data = await original(self, max_bytes, timeout)
        read += len(data)
        return data

    monkeypatch.setattr(egress_module._Counted, "read", counted)
    receiver.will(Flood(head))
    reply = await egress.post(receiver.url, {}, b"{}")
    assert (reply.status == 200) == head.endswith(b"\r\n\r\n")
    assert 0 < read <= 64 * 1024


async def test_a_compressed_answer_is_not_unpacked(receiver: Receiver, egress: Egress) -> None:
    receiver.will(status(200, "content-encoding: gzip", body="not really gzip"))
    reply = await egress.post(receiver.url, {}, b"{}")
    assert reply.good
    assert reply.shown == "not really gzip"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("999999999999", 86_400, 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400, 86_400),
    ],
)
async def test_retry_after_is_read_in_both_forms(
    receiver: Receiver, egress: Egress, text: str, least: float, most: float
) -> None:
    receiver.will(status(429, f"retry-after: {text}"))
    reply = await egress.post(receiver.url, {}, b"{}")
    assert reply.retry_after_s is not None
    assert least <= reply.retry_after_s <= most


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5.2", "٣"])
async def test_a_retry_after_that_says_nothing_counts_for_nothing(
    receiver: Receiver, egress: Egress, text: str
) -> None:
    receiver.will(status(429).replace(b"connection", f"retry-after: {text}\r\nconnection".encode()))
    assert (await egress.post(receiver.url, {}, b"{}")).retry_after_s is None


async def test_what_is_no_http_is_an_error_in_words(receiver: Receiver, egress: Egress) -> None:
    for answer in (b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n"):
        receiver.will(answer)
        reply = await egress.post(receiver.url, {}, b"{}")
        assert reply.error is not None
        assert reply.error.startswith("the connection broke")


async def test_a_receiver_that_does_not_listen_is_an_error_in_words(egress: Egress) -> None:
    probe = Receiver()
    await probe.start()
    url = probe.url
    await probe.stop()
    reply = await egress.post(url, {}, b"{}")
    assert reply.error is not None
    assert reply.error.startswith("no connection")


async def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    egress = Egress(Destinations("127.0.0.1"), 1)
    assert (await egress.post(receiver.url, {}, b"{}")).good
    await egress.close()


# -- https: the connection goes to the address, the certificate is the name's


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return cert_file, key_file


@pytest.mark.parametrize(("name", "good"), [("hooks.example", True), ("other.example", False)])
async def test_the_certificate_must_be_the_names_though_the_connection_goes_to_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, good: bool
) -> None:
    cert_file, key_file = certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    names: list[str] = []
    context.sni_callback = lambda _, asked, __: names.append(asked)
    receiver = Receiver()
    await receiver.start(context=context)
    egress = Egress(Destinations("127.0.0.1"), 2, lambda host, port: _resolved("127.0.0.1"))
    reply = await egress.post(f"https://{name}:{receiver.port}/hook?x=1", {"webhook-id": "evt_1"}, b"{}")
    await egress.close()
    await receiver.stop()
    assert names == [name]
    assert reply.good == good
    if good:
        (got,) = receiver.received
        assert got.headers["host"] == f"{name}:{receiver.port}"
        assert got.line == "POST /hook?x=1 HTTP/1.1"
        assert reply.address == "127.0.0.1"
    else:
        assert receiver.received == []
        assert reply.error is not None
        assert "no connection" in reply.error


async def test_no_connection_is_used_twice(receiver: Receiver, egress: Egress) -> None:
    receiver.will(status(200).replace(b"connection: close", b"connection: keep-alive"))
    for _ in range(3):
        await egress.post(receiver.url, {}, b"{}")
    assert receiver.connections == 3


async def test_a_resolver_that_does_not_answer_is_left_in_time(egress: Egress) -> None:
    async def hang(host: str, port: int) -> list[Any]:
        await asyncio.sleep(3600)
        return []

    egress._resolve = hang
    reply = await egress.post("https://example.org/", {}, b"{}")
    assert reply.error == "no answer within 1 s"

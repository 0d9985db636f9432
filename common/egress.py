"""The one way out: a POST to a webhook, over a connection to an address that was checked a moment before.

The host is looked up once for each attempt, all its addresses are checked, and the connection goes to one of them:
what the name leads to later changes nothing. Whoever connects checks once more. No redirects, no proxy, no connection
is used twice (one that was made for another name must not carry this one's), and bounds on time and on what is read.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import certifi
import httpcore
import httpx
import msgspec

from common.destinations import Address, Destinations, Target, address_of
from common.errors import DestinationRefused

#: Bytes of an answer that are read at most, its head included.
MOST_READ = 65_536
#: Characters of an answer that are kept to be looked at.
SHOWN = 300
#: A Retry-After that asks for more counts as this.
LONGEST_RETRY_AFTER_S = 86_400.0
BODY_S = 1.0  # an answer's body is waited for no longer: it is only kept to be looked at
LOOKUPS = 32  # at once: a name server that does not answer holds up one thread each

Resolve = Callable[[str, int], Awaitable[list[Address]]]


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one attempt went: a status, or an error in words."""

    at: float
    took_ms: int
    status: int | None = None
    error: str | None = None
    address: str | None = None
    shown: str | None = None
    retry_after_s: float | None = None

    @property
    def good(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def words(self) -> str:
        """It in a few words."""
        return self.error or f"status {self.status}"


class Egress:
    """Sends POSTs. `resolve` stands in for the system's resolver in tests."""

    def __init__(self, destinations: Destinations, timeout_s: float, resolve: Resolve | None = None) -> None:
        self.destinations = destinations
        self.timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(LOOKUPS, "resolver")
        self._resolve = resolve or self._looked_up
        self._client = httpx.AsyncClient(
            transport=_Transport(destinations), trust_env=False, follow_redirects=False, timeout=timeout_s
        )

    async def close(self) -> None:
        """Let go of everything."""
        await self._client.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Reply:
        """Make one attempt; whatever goes wrong is in the answer."""
        at, began = time.time(), time.perf_counter()
        about: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self.timeout_s):
                about |= await self._posted(url, headers, body, about)
        except TimeoutError:
            about["error"] = f"no answer within {self.timeout_s:g} s"
        except DestinationRefused as error:
            about["error"] = f"refused: {error}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            about["error"] = _words(error)
        return Reply(at=round(at, 3), took_ms=round(1000 * (time.perf_counter() - began)), **about)

    async def _posted(self, url: str, headers: dict[str, str], body: bytes, about: dict[str, Any]) -> dict[str, Any]:
        target = self.destinations.check_url(url)
        addresses = [target.address] if target.address else await self._resolve(target.host, target.port)
        if not addresses:
            raise OSError("its host has no address")
        self.destinations.check(target, addresses)
        address = random.choice([a for a in addresses if a.version == 4] or addresses)
        about["address"] = str(address)
        request = self._client.build_request(
            "POST",
            _pinned(target, address),
            headers={**headers, "host": target.authority, "connection": "close", "accept-encoding": "identity"},
            content=body,
            extensions={"sni_hostname": target.host},
        )
        response = await self._client.send(request, stream=True)
        try:
            return {"status": response.status_code, **_asked_to_wait(response), **await _beginning(response)}
        finally:
            await response.aclose()

    async def _looked_up(self, host: str, port: int) -> list[Address]:
        # In threads of our own: uvloop has four for all lookups of the process, and a lookup cannot be given up.
        look = self._threads.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return [address_of(str(found[4][0])) for found in await asyncio.wrap_future(look)]


def _pinned(target: Target, address: Address) -> str:
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{target.scheme}://{host}:{target.port}{target.path}"


async def _beginning(response: httpx.Response) -> dict[str, Any]:
    # Not decoded: a few bytes may unpack to gigabytes. What the body is, or whether it ever ends, cannot change how the
    # attempt went: the status has.
    read = b""
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(BODY_S):
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) >= SHOWN * 4:
                    break
    text = read.decode("utf-8", "replace")[:SHOWN]
    return {"shown": "".join(c if c.isprintable() else " " for c in text)} if text else {}


def _asked_to_wait(response: httpx.Response) -> dict[str, float]:
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return {"retry_after_s": min(float(text[:9]), LONGEST_RETRY_AFTER_S)}
    try:
        wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return {}
    return {"retry_after_s": min(max(0.0, wait_s), LONGEST_RETRY_AFTER_S)}


def _words(error: Exception) -> str:
    # Never the error's own text of a request, which may have the address in it, and in that a secret.
    if isinstance(error, socket.gaierror):
        return "its host has no address"
    if isinstance(error, httpx.ConnectError):
        return f"no connection: {error}"[:SHOWN]
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return f"the connection broke: {type(error).__name__}"
    return f"no connection: {error}"[:SHOWN]


def tls_context() -> ssl.SSLContext:
    """Certificates are checked against the system's authorities (`SSL_CERT_FILE` too) and those that come with us."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class _Transport(httpx.AsyncHTTPTransport):
    """httpx' own, on connections that are checked, counted and used once."""

    def __init__(self, destinations: Destinations) -> None:
        context = tls_context()
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=0,
            http2=False,
            network_backend=_Backend(destinations),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only: a name, or an address that nobody checked, goes no further."""

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, if it may be; https stands for either here, since the scheme was checked with the address."""
        try:
            self._destinations.check(Target("https", host, port, "/", None), [address_of(host)])
        except ValueError:
            raise DestinationRefused("its host was not looked up") from None
        stream = await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Counted(stream)


class _Counted(httpcore.AsyncNetworkStream):
    """A stream of which no more than `MOST_READ` bytes are read."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MOST_READ

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read, up to the bound."""
        if self._left <= 0:
            raise httpcore.ReadError("its answer is too long")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Go on encrypted."""
        return _Counted(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Whatever the stream knows."""
        return self._stream.get_extra_info(info)

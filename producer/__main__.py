"""`python -m producer`: serves the web application until it is told to stop; beyond loopback only with API keys."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from fastapi import FastAPI

from common import scripts
from common.api_keys import ApiKeys
from common.errors import SettingsInvalid, StoreUnavailable
from common.service import log_to_stderr
from common.settings import Settings, load_settings, mask
from producer.address import is_loopback
from producer.app import create_app

GRACE_S = 5  # for answers in progress; whoever waits or reads events is let go at once and comes back


class Server(uvicorn.Server):
    """Uvicorn's server, which says where it listens and lets waiting callers go before it stops."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self.web = app
        self.settings = settings
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so in one line."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            address = f"http://{_shown_host(self.settings.host)}:{port}"
            self.listening.set()
            print(f"web listens on {address}, Redis is {mask(self.settings.redis_url)}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every held answer and every stream, then stop in order."""
        self.web.state.stopping.set()
        await super().shutdown(sockets)


def main() -> None:
    """Read the settings, check them, serve."""
    try:
        settings = load_settings()
        check_host(settings)
        app = create_app(settings)
    except SettingsInvalid as error:
        sys.exit(str(error))
    log_to_stderr(settings.log_level)
    Server(config(app, settings), app, settings).run()


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs: quiet, in C where it can."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def check_host(settings: Settings) -> None:
    """Refuse to listen where strangers could come while there are no API keys.

    A Redis that does not answer now does not keep us from starting: beyond loopback every call needs a key anyway.
    """
    if is_loopback(settings.host):
        return
    try:
        made = asyncio.run(_any_made(settings))
    except StoreUnavailable:
        return
    if not made:
        raise SettingsInvalid(
            f"JARVIS_HOST has value {settings.host!r}: only loopback (127.0.0.1, ::1, localhost) is allowed while there"
            " are no API keys, since whoever reaches this address could use it. Make one first:"
            " jarvis keys create --name NAME --tier custom"
        )


async def _any_made(settings: Settings) -> bool:
    client = scripts.connect(settings)
    try:
        return await ApiKeys(client, settings).any_made()
    finally:
        await client.aclose()


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()

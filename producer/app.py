"""The web process' application: stateless and thin, any number of it; it starts with or without Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from redis.exceptions import RedisError

from common.api_keys import ApiKeys
from common.batches import Batches
from common.catalogue import Catalogue
from common.errors import JarvisError
from common.files import Files
from common.heap import settle_heap
from common.queue import Queue
from common.results import Results
from common.settings import Settings
from producer import admin, problems, standing, usage, webhooks
from producer.address import is_loopback
from producer.auth import Authentication, Authenticator
from producer.edge import Edge
from producer.guard import Guard
from producer.openai import batches as openai_batches
from producer.openai import files as openai_files
from producer.openai import routes as openai
from producer.openai.responses import routes as responses
from producer.openapi import describe
from producer.routes import router, submits
from producer.submit import Submitter

log = logging.getLogger("jarvis.keys")

VERSION = "0.1.0"
REPAIR_PAUSE_S = 5.0
DESCRIPTION = """\
An inference queue for people who own GPUs: every call to a model is a durable, ordered, streamed job.

A job that was answered with 202 is kept, whichever process dies. Errors are problem details (RFC 9457) that
name the field; `x-should-retry` says whether the same request can succeed later, `retry-after` (seconds) and
`retry-after-ms` say when. From a server's first API key on every call needs one and sees what is its owner's
alone: another owner's thing is a 404, as one that never was.
"""


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; raises SettingsInvalid when the catalogue is wrong."""
    catalogue = Catalogue.load(settings.catalogue)
    app = FastAPI(
        title="Jarvis",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # the page would load its scripts from the internet
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.catalogue = catalogue
    app.state.stopping = asyncio.Event()
    forms = {
        "": settings.max_audio_bytes + settings.max_body_bytes,  # a recording and the job that goes with it
        "/v1/files": settings.max_file_bytes + settings.max_body_bytes,
    }
    app.add_middleware(Authentication, metrics_open=settings.metrics_open)
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes, max_form_bytes=forms)
    ours = (standing.router, admin.router, usage.router, webhooks.router)
    own = (*ours, openai.router, responses.router, openai_files.router, openai_batches.router)
    for routes in (submits, openai.calls, responses.calls, router, *own):  # the first route that matches is taken
        app.include_router(routes)
    app.openapi = describe(app)  # type: ignore[method-assign]
    problems.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings, catalogue = app.state.settings, app.state.catalogue
    queue = await Queue.connect(settings)  # does not need Redis to answer yet
    results = Results(queue.redis, settings)
    submitter = Submitter(queue, catalogue, settings)
    files, batches = Files(queue.redis, settings), Batches(queue.redis, settings)
    app.state.edge = Edge(settings, catalogue, queue, results, submitter, files, batches, app.state.stopping)
    keys = ApiKeys(queue.redis, settings)
    # A server that strangers can reach serves nobody without a key, even while Redis cannot say whether there are keys.
    app.state.authenticator = Authenticator(keys, settings, always=not is_loopback(settings.host))
    repairing = asyncio.create_task(_bring_up_to_date(keys))
    settle_heap()
    try:
        yield
    finally:
        repairing.cancel()
        app.state.stopping.set()
        await results.close()
        await queue.close()


async def _bring_up_to_date(keys: ApiKeys) -> None:
    """What keys may use reaches the queues, whoever died before it did, and whatever the settings say since."""
    while True:
        try:
            return await keys.apply_all()
        except (JarvisError, RedisError) as error:
            log.warning("the limits of API keys could not be brought up to date yet: %s", error)
            await asyncio.sleep(REPAIR_PAUSE_S)

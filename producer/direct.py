"""The route class of what is called most: described to FastAPI like any other, served without it in between.

FastAPI looks for parameters and dependencies in every request; a handler that takes the request itself has none,
and that search costs as much as the handler's own work.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class Direct(APIRoute):
    """A route whose handler takes the request and returns the response."""

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What the handler raises is answered one layer further out, by the same table of errors.
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

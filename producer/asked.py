"""A request's body as the shape that its address asks for."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from common.errors import MalformedBody
from producer.body import json_body
from producer.explain import invalid_body

Shape = TypeVar("Shape", bound=BaseModel)


async def read(shape: type[Shape], request: Request) -> Shape:
    """The body, checked; no body is an empty object. Raises MalformedBody, Invalid naming each wrong field."""
    body = await json_body(request) if await request.body() else {}  # OpenAI's SDK sends none where nothing was given
    if isinstance(body, list):
        raise MalformedBody("it is a list; an object is expected")
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        raise invalid_body(error, whole=True) from None
